"""Hook of the site: reports of the gallery, written anew from stored runs at every build.

`python docs/hooks/gallery.py FOLDER NAME` packs the runs in a folder of `normlab run` as `docs/gallery/NAME.tar.xz`.
The same runs give the same bytes. `docs/gallery.md` describes each report, and links to `gallery/NAME/report.html`.
"""

import argparse
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

GALLERY = Path(__file__).parents[1] / "gallery"


def pack(folder: Path, archive: Path) -> None:
    """Pack the header and the runs of a folder, without its report."""
    paths = [folder / "comparison.json", *sorted(folder.glob("runs/??/*.json"))]
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        for path in paths:
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                packed.addfile(entry, content)


def reports(archives: list[Path], folder: Path) -> dict[str, bytes]:
    """Unpack archives below a folder, and return their reports by name."""
    commands = {}
    for archive in archives:
        name = archive.name.removesuffix(".tar.xz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder / name, filter="data")
        commands[name] = subprocess.Popen(
            [sys.executable, "-m", "normlab", "report", name],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(GALLERY.parents[1])},
            stdout=subprocess.DEVNULL,
        )
    failed = [name for name, command in commands.items() if command.wait()]
    if failed:
        raise RuntimeError(f"Expected `normlab report` to write the reports of {', '.join(failed)}, got an error.")
    return {name: (folder / name / "report.html").read_bytes() for name in commands}


def main() -> None:
    """Pack a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of `normlab run`")
    parser.add_argument("name", metavar="NAME", help="name of the report in the gallery")
    given = parser.parse_args()
    if not (given.folder / "comparison.json").is_file():
        parser.error(f"expected a folder of `normlab run`, got `{given.folder}`. Run a comparison first")
    pack(given.folder, GALLERY / f"{given.name}.tar.xz")


if __name__ == "__main__":
    main()
else:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import File, Files

    def on_files(files: Files, config: MkDocsConfig) -> Files:
        """Add the reports."""
        with TemporaryDirectory() as folder:
            for name, content in reports(sorted(GALLERY.glob("*.tar.xz")), Path(folder)).items():
                files.append(File.generated(config, f"gallery/{name}/report.html", content=content))
        return files
