"""predict.py with thin networks (tests/support/thin.py), for what thin_train.py trained.

python tests/integration/thin_predict.py OPTIONS
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import predict
from tests.support.thin import thin_networks

if __name__ == "__main__":
    with thin_networks():
        sys.exit(predict.main())
