"""The label that no loss counts: of a prompt's tokens, of padding, of the first token of a sequence."""

IGNORE = -100
