"""Makes tables, figures and one self-contained page from run and workflow folders. It only reads their files."""
