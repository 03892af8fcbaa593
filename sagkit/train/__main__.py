"""`python -m sagkit.train`: the command `sagkit train`."""

import sys

from sagkit.train.config import parse


def main(arguments: list[str] | None = None) -> None:
    """Command line: `--profile` and `--method` choose the defaults, any other field of Config overrides them."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        from sagkit.train.trainer import fit  # after --help

        run = fit(config)
    except (ValueError, OSError) as error:
        raise SystemExit(f"sagkit train: {error}") from None
    if run.record:  # the first process has it
        print(f"record: {run.path}")
    for name, value in run.record.get("metrics", {}).items():
        print(f"  {name:28s} {value:.4f}")


if __name__ == "__main__":
    main()
