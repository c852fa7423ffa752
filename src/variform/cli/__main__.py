"""`python -m variform.cli`."""

import sys

from variform.cli.main import main

sys.exit(main())
