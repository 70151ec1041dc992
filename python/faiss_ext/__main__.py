"""python -m faiss_ext"""

import sys

try:
    from ._cli import main
except ImportError as error:
    sys.exit(
        f"faiss-ext: {error.name} is missing: pip install 'faiss-ext[cli]'"
    )

if __name__ == "__main__":
    main()
