"""Tables, figures and one self-contained page from run and workflow folders. Reads files only; starts no training."""
