"""The options of every program: one definition per flag, validated before anything starts."""
