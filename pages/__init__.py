"""Parts of HTML pages that several reports share: the frame and its style, charts, small pictures."""
