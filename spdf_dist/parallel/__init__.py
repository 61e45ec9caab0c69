"""Process groups, where each logical tensor lies on the ranks, and the sparse column- and row-parallel linears."""
