"""How fast is the model itself: forward without gradients, and forward with backward?

The calls timed are ``m(x)`` under ``torch.no_grad()``, and ``y = m(x); y.backward(g)`` with all
gradients set to None before.
"""

from suite import Suite, network_options


def main() -> int:
    tasks = ("forward", "forward+backward")
    contestants = ("fastmlp", "eager", "compile", "jax", "onnxruntime")
    return Suite(network_options(__doc__, "named,blocks", tasks, contestants).parse_args()).run()


if __name__ == "__main__":
    raise SystemExit(main())
