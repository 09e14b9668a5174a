"""`python -m dav_ray` is the command `dav-ray`."""

from dav_ray.cli.app import main

if __name__ == "__main__":
    main()
