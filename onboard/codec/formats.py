"""The first byte of a packed model says in which form it is: a row of `onboard.codec.pack.CODECS`.

They stand here alone, so that whoever only names a form need not load the codecs."""

ALQ = 1
"""Binary bases under a bit budget (`onboard.codec.quantized`)."""
DENSE = 2
"""float32 (`onboard.codec.dense`)."""
