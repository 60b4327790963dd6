"""How fast is a whole step of training, with CrossEntropyLoss and SGD?

The call timed is ``zero_grad(); loss(m(x), labels).backward(); step()``, with torch's own loss and
optimizer for fastmlp, eager and torch.compile (which compiles the model); for JAX it is one
compiled function.
"""

from suite import Suite, network_options


def main() -> int:
    contestants = ("fastmlp", "eager", "compile", "jax")
    return Suite(network_options(__doc__, "named", ("step",), contestants).parse_args()).run()


if __name__ == "__main__":
    raise SystemExit(main())
