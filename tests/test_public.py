"""The public names: `__all__`, what type checkers see, what is imported on first use, and the page that lists them."""

import importlib

import pytest

import normlab
from normlab import study
from tests.support import public


@pytest.mark.parametrize("name", [*public.MODULES, *public.SINGLE])
def test_every_public_name_is_there(name: str) -> None:
    module = importlib.import_module(name)
    listed = public.SINGLE.get(name) or public.names(module)
    assert len(set(listed)) == len(listed) > 0
    assert [one for one in listed if not hasattr(module, one)] == []


@pytest.mark.parametrize("name", ["normlab.models", "normlab.river", "normlab.study", "normlab.study.streams"])
def test_all_lists_what_type_checkers_see(name: str) -> None:
    module = importlib.import_module(name)
    imports = [(str(node.module), alias.name) for node, alias in public.imports(public.tree_of(module).body)]
    eager = [name for origin, name in imports if origin.startswith("normlab.") and origin != "normlab.extras"]
    assert set(module.__all__) == {*eager, *public.for_type_checkers(module)}


def test_modules_of_the_package_are_imported_on_first_use() -> None:
    assert public.for_type_checkers(normlab) == dict.fromkeys(normlab.__all__, "normlab")
    with pytest.raises(AttributeError, match="no attribute 'batchnorm'"):
        _ = normlab.batchnorm  # type: ignore[attr-defined]


def test_names_of_the_study_are_imported_on_first_use_from_where_type_checkers_find_them() -> None:
    lazy = {name: f"normlab.study.{module}" for name, module in study._LATER.items()}
    assert lazy == public.for_type_checkers(study)
    for name, module in lazy.items():
        assert getattr(study, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'Comparisson'"):
        _ = study.Comparisson  # type: ignore[attr-defined]


def test_the_page_lists_the_public_names() -> None:
    assert public.PAGE.read_text() == public.page(), "Run `python -m tests.support.public`."
