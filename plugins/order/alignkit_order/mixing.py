"""The order of the training rows from the configuration: weights, curriculum, groups, phases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from alignkit.config import DataConfig
from alignkit.data.order import Ints, Margins
from alignkit.data.table.split import Words, codes
from alignkit.data.table.tokenised_rows import TokenisedRows
from alignkit.errors import ConfigError, DataError, suggest

from alignkit_order.mixed import Curriculum, MixedOrder, Phase, amounts


def row_order(data: DataConfig, train: TokenisedRows, seed: int, margins: Margins | None = None) -> MixedOrder:
    """Return the order of the training rows; ``margins`` is called for a curriculum by the start model's margin.

    Raises:
        ConfigError: a name is unknown, or the rows do not support the order.
        DataError: a row lacks the curriculum's or group's column, or has no number in it.
    """
    single = len(data.parts) == 1 and data.parts[0].repeat == 1
    sources = None if single else train.sources(data.names)
    parts, names, groups = sources, data.names, None
    if data.group_by is not None:
        found, groups = codes(_values(train, data.group_by, names, sources))
        parts, names = groups, found.to_pylist()
    phases = tuple(_phases(data, names, parts))
    return MixedOrder(
        rows=len(train),
        seed=seed,
        shuffle=data.shuffle,
        sources=parts if phases else sources,
        amounts=None if phases else _amounts(data, sources),
        interleave=data.interleave,
        curriculum=_curriculum(data, train, margins),
        groups=groups,
        steps_per_group=data.steps_per_group,
        phases=phases,
    )


def _amounts(data: DataConfig, sources: Ints | None) -> tuple[int, ...] | None:
    if sources is None:
        return None
    sizes = np.bincount(sources, minlength=len(data.parts)).tolist()
    weights = [part.weight for part in data.parts]
    if any(part.weight is not None or part.repeat != 1 for part in data.parts):
        _require_rows("data.sources", data.names, sizes)
    if given := [weight for weight in weights if weight is not None]:
        return amounts(sizes, given, data.exhausted)
    if all(part.repeat == 1 for part in data.parts):
        return None
    return tuple(max(round(size * part.repeat), 1) for size, part in zip(sizes, data.parts, strict=True))


def _phases(data: DataConfig, names: list[str], parts: Ints | None) -> Iterator[Phase]:
    if not data.phases:
        return
    if parts is None:
        raise ConfigError("data.phases needs several data.sources, or data.group_by")
    for number, phase in enumerate(data.phases):
        for name in phase.weights:
            if name not in names:
                raise ConfigError(
                    f'data.phases[{number}].weights: unknown name "{name}"{suggest(name, names)} '
                    f"(known: {', '.join(names)})"
                )
        weights = [phase.weights.get(name, 0.0) for name in names]
        if not any(weights):
            raise ConfigError(f"data.phases[{number}].weights must have at least one weight above 0")
        sizes = np.bincount(parts, minlength=len(names)).tolist()
        _require_rows("data.phases", names, [size or not weight for size, weight in zip(sizes, weights, strict=True)])
        yield Phase(phase.until, amounts(sizes, weights, data.exhausted))


def _require_rows(key: str, names: Sequence[str], sizes: Sequence[int]) -> None:
    if lost := next((name for name, size in zip(names, sizes, strict=True) if not size), None):
        raise DataError(f"{key}: every row of {lost} is held out, and none is left to repeat or to weigh")


def _values(train: TokenisedRows, name: str, names: Sequence[str], sources: Ints | None) -> Words:
    """Return the group key of every row."""
    if name == "source":
        return [names[0]] * len(train) if sources is None else [names[i] for i in sources]
    if name in ("category", "cluster"):
        return train.column(name)
    return [str(value) for value in _column(train, name, "data.group_by")]


def _curriculum(data: DataConfig, train: TokenisedRows, margins: Margins | None) -> Curriculum | None:
    given = data.curriculum
    if given is None:
        return None
    if given.by == "length":
        difficulty = train.lengths().astype(np.float64)
    elif given.by == "margin":
        if margins is None or train.kind != "preference":
            raise ConfigError("data.curriculum.by: margin needs a method with preference rows")
        difficulty = -margins()
    else:
        difficulty = np.array([*_numbers(train, given.by)])
    return Curriculum(-difficulty if given.descending else difficulty, given.buckets, given.epochs)


def _numbers(train: TokenisedRows, name: str) -> Iterator[float]:
    for position, value in enumerate(_column(train, name, "data.curriculum.by")):
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if number - number != 0:
            table, row = train.find(position)
            raise DataError(f'{table.place(row)}: "{name}" is {value!r}, but data.curriculum.by needs a number')
        yield number


def _column(train: TokenisedRows, name: str, key: str) -> Iterator[str | float]:
    for position in range(len(train)):
        table, row = train.find(position)
        fields = table.fields(row)
        if name not in fields:
            others = ("length", "margin") if key == "data.curriculum.by" else ("source", "category", "cluster")
            hint = suggest(name, [*fields, *others])
            raise DataError(
                f'{table.place(row)}: no column "{name}" for {key}{hint} (the row has {", ".join(fields) or "none"})'
            )
        yield fields[name]
