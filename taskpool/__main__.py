"""`python -m taskpool`: the command line."""

if __name__ == "__main__":  # workers of an embedded pool import this module too; they need nothing of it
    import sys

    from taskpool.cli.main import main

    sys.exit(main())
