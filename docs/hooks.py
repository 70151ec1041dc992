"""Pages that are made of files elsewhere in the tree, for mkdocs."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]

#: Public headers, in the order in which a reader meets them.
HEADERS = (
    "faiss_ext/index_factory.h",
    "faiss_ext/IndexIVFGMM.h",
    "faiss_ext/IndexIVFRaBitQGMM.h",
    "faiss_ext/ivflib.h",
    "faiss_ext/sources.h",
    "faiss_ext/ondisk.h",
    "faiss_ext/ListShard.h",
    "faiss_ext/index_io.h",
    "faiss_ext/Calibration.h",
    "faiss_ext/ProbePolicy.h",
    "faiss_ext/GMMParameterSpace.h",
    "faiss_ext/GpuGMMClustering.h",
    "faiss_ext/IndexGMM.h",
    "faiss_ext/CellCodes.h",
    "faiss_ext/PairCells.h",
    "src/GaussianMixture.h",
    "src/EMTrainer.h",
    "src/MixtureTools.h",
    "src/Backend.h",
    "src/CudaOptions.h",
    "src/VectorSource.h",
    "src/DeviceSource.h",
    "src/SufficientStats.h",
    "src/FullCovariance.h",
    "src/Error.h",
)


def _headers():
    for name in HEADERS:
        text = (ROOT / name).read_text()
        body = re.sub(r"\A#pragma once\n+", "", text).strip()
        installed = f"<faiss_ext/{name.rpartition('/')[2]}>"
        yield f"## `{installed}`\n\n```cpp\n{body}\n```\n"


def _fields():
    """The fields of Index, which are descriptors, as a table."""
    tree = ast.parse((ROOT / "python/faiss_ext/_fields.py").read_text())
    (fields,) = (n for n in tree.body if getattr(n, "name", "") == "Fields")
    yield "| field | type | says |\n|---|---|---|"
    for node in fields.body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(
                    func=ast.Subscript(slice=kind),
                    args=[ast.Constant(value=text)],
                ),
            ):
                yield f"| `{name}` | `{ast.unparse(kind)}` | {text} |"


def on_page_markdown(markdown, page, **_):
    """Replaces {{headers}}, {{fields}} and {{file NAME}}."""

    def included(match):
        text = (ROOT / match[1]).read_text()
        # What is a link within the tree is none on a page.
        return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)

    markdown = re.sub(r"\{\{file ([^}]*)\}\}", included, markdown)
    markdown = markdown.replace("{{fields}}", "\n".join(_fields()))
    return markdown.replace("{{headers}}", "\n".join(_headers()))
