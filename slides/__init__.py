"""What a slide is: coordinate frames, pixels at any spacing, annotations and masks behind one interface.

NumPy and slide libraries only. Start with `reader.Slide` and `truth.open_truth`.
"""
