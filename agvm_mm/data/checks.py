"""What the digits data sets check before they read anything."""

import os


def check_there(path, data_root):
    """Check that a file or a folder of the data has been made.

    Args:
        path (str): The file or folder.
        data_root (str or None): Folder of the data set, for the message.

    Raises:
        FileNotFoundError: If it is not there; the message holds the command that
            makes it.
    """
    if not os.path.exists(path):
        out = data_root or '<data_root>'
        raise FileNotFoundError(
            f'{path} is not there. Make the digits data first: '
            f'python -m agvm_mm.data --out {out}'
        )
