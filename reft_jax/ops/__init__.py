"""Pure maths: arrays and numbers in, arrays out."""
