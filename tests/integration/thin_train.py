"""train.py with thin networks (tests/support/thin.py): layers of the same kinds and names, a few of them.

python tests/integration/thin_train.py OPTIONS
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import train
from tests.support.thin import thin_networks

if __name__ == "__main__":
    with thin_networks():
        sys.exit(train.main())
