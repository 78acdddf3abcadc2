"""Where the proposals of blockwise decoding come from."""
