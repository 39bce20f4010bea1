"""What the small commands do once their flags are parsed; these files import PyTorch, their parsers do not."""
