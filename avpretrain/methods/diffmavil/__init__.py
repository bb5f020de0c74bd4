"""DiffMAViL (arXiv 2310.03937), with MAViL as the same method under another config."""
