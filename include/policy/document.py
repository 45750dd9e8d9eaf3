"""A YAML file as typed data, or refused: all that is wrong with it at once, each with its line and its mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from include.errors import Hopeless
from include.policy.model import Place

Model = TypeVar("Model", bound=BaseModel)

# How a plain value is written, by the first word of the error that pydantic has for it.
_WRITTEN = {
    "int": "Write a whole number",
    "float": "Write a number",
    "bool": "Write true or false",
    "string": 'Write a text, in quotes if need be, as in "1.3"',
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the file: the `line` (from 1), `where` in the tree, `what`, and the `mend`."""

    line: int
    where: str
    what: str
    mend: str


class DocumentError(Hopeless):
    """The file is refused; `problems` holds every reason, `file` the file that has them.

    `called` is what such a file is, `environment` the variable that names one, `default` the one that ships.
    """

    called: ClassVar[str]
    environment: ClassVar[str]
    default: ClassVar[Path]

    def __init__(self, file: Path, problems: Iterable[Problem]) -> None:
        self.file = file
        self.problems = tuple(sorted(set(problems), key=lambda problem: (problem.line, problem.where)))
        lines = [
            f"{file}:{problem.line}: {f'{problem.where}: ' if problem.where else ''}{problem.what} {problem.mend}"
            for problem in self.problems
        ]
        count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
        super().__init__(
            f"The {self.called} is refused, with {count}.",
            mend="\n".join([f"Mend the file, or name another one in {self.environment}:", *lines]),
        )


def load_document(model: type[Model], file: Path, refused: type[DocumentError]) -> Model:
    """Load a file as the model; raises `refused` with everything wrong: unreadable, no YAML, or not such a document."""
    tree = _Tree(file, refused)
    problems = list(tree.problems)
    try:
        document = model.model_validate(tree.data)
    except ValidationError as error:
        problems += [_explained(tree, model, each) for each in error.errors(include_url=False)]
    if problems:
        raise refused(file, problems)
    return document


class _Tree:
    """A YAML file as plain `data`, with the line of every place in it, and what YAML itself finds wrong."""

    def __init__(self, file: Path, refused: type[DocumentError]) -> None:
        self.problems: list[Problem] = []
        self.lines: dict[Place, int] = {(): 1}
        # Nodes know their lines and still hold both of two equal keys; ready-made data does not.
        self._yaml = YAML(typ="safe", pure=True)
        try:
            root = self._yaml.compose(file.read_text(encoding="utf-8"))
        except OSError as error:
            mend = f"Set {refused.environment} to a file that can be read."
            raise refused(file, [Problem(1, "", f"The file cannot be read: {error.strerror}.", mend)]) from None
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise refused(file, [Problem(line, "", "This is not UTF-8.", "Save the file as UTF-8.")]) from None
        except YAMLError as error:
            raise refused(file, [_not_yaml(error)]) from None
        if not isinstance(root, MappingNode) or not root.value:
            what = "The file is empty." if root is None else "The file holds no keys."
            raise refused(file, [Problem(1, "", what, f"Copy {refused.default.name} and change it.")])
        self.data = self._read(root, ())

    def line(self, place: Place) -> int:
        """The line of the place, or of the nearest one above it that is in the file."""
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]

    def _read(self, node: Node, place: Place, above: tuple[Node, ...] = ()) -> Any:
        self.lines.setdefault(place, node.start_mark.line + 1)
        if node in above:
            self._problem(node, place, "contains itself.", "Write the value out.")
            return None
        above = (*above, node)
        if isinstance(node, SequenceNode):
            return [self._read(item, (*place, index), above) for index, item in enumerate(node.value)]
        if isinstance(node, MappingNode):
            data: dict[str, Any] = {}
            for key, value in node.value:
                if not isinstance(key, ScalarNode):
                    self._problem(key, place, "has a key that is not a word.", "Use plain words as keys.")
                elif key.value in data:
                    what = f"is here twice, first in line {self.lines[(*place, key.value)]}."
                    self._problem(key, (*place, key.value), what, "Keep one of them.")
                else:
                    self.lines[(*place, key.value)] = key.start_mark.line + 1
                    data[key.value] = self._read(value, (*place, key.value), above)
            return data
        try:
            return self._yaml.constructor.construct_object(node)
        except (YAMLError, ValueError):
            self._problem(node, place, f"has the value {node.value!r}, which YAML cannot read.", "Quote it.")
            return node.value

    def _problem(self, node: Node, place: Place, what: str, mend: str) -> None:
        self.problems.append(Problem(node.start_mark.line + 1, _where(place), what, mend))


def _not_yaml(error: YAMLError) -> Problem:
    line, what = 1, "it holds a character that YAML does not allow"
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line, what = (mark.line + 1 if mark else 1), error.problem or error.context or "unknown"
    return Problem(line, "", f"This is not YAML: {what}.", "Check the indentation, quotes and brackets here and above.")


def _explained(tree: _Tree, model: type[BaseModel], error: Mapping[str, Any]) -> Problem:
    """One error of pydantic's in the words of whoever wrote the file."""
    place: Place = tuple(step for step in error["loc"] if step != "[key]")
    if error["type"] == "refused":
        what, mend = error["ctx"]["what"], error["ctx"]["mend"]
    elif error["type"] == "missing":
        what, mend = "is missing.", "Add it."
    elif error["type"] == "extra_forbidden":
        known = _known_keys(model, place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        what = "is an unknown key."
        mend = f"Did you mean {near[0]}?" if near else f"The keys here are {', '.join(known)}."
    elif error["type"] in ("model_type", "dict_type"):
        known = _known_keys(model, place)
        what, mend = "is no table.", f"Its keys are {', '.join(known)}." if known else "Write it as `key: value` lines."
    elif error["type"] == "tuple_type":
        what, mend = "is no list.", "Write it as in [first, second]."
    elif error["type"] == "literal_error":
        what, mend = f"is {error['input']!r}.", f"Use {error['ctx']['expected'].replace('True', 'true')}."
    else:
        said = error["msg"].replace("Input", "It", 1)
        what, mend = f"is {error['input']!r}.", f"{_WRITTEN.get(error['type'].partition('_')[0], said)}."
    return Problem(tree.line(place), _where(place), what, mend)


def _known_keys(model: type[BaseModel], place: Place) -> list[str]:
    """The keys that the model has at this place; none where it leaves them free."""
    kind: Any = model
    for step in place:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and step in kind.model_fields:
            kind = kind.model_fields[str(step)].annotation
        else:
            kind = (None, *get_args(kind))[-1]  # what a dict's values are
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [name for name in kind.model_fields if (place[:1], name) != (("components",), "name")]
    return []


def _where(place: Place) -> str:
    """`("components", "billing", "tables", 0)` as `components.billing.tables[0]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
