"""What other libraries load of this package; each needs its extra."""
