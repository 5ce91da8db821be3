"""Settings of a method whose loss is chosen by name: those of the chosen losses are settings of the method as well."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, Union

from alignkit import Loss, Settings
from alignkit.contract.registry import find, load, usable
from alignkit.errors import PluginError
from pydantic import Field, ValidationInfo, create_model, field_serializer, field_validator
from pydantic.fields import FieldInfo

ABOUT = (
    "loss of a pair (align losses lists them), or several with their weights and settings: "
    "{sigmoid: 0.8, bco: {weight: 0.2, beta: 0.2}}"
)

ELSEWHERE = {
    "sft": "nll",
    "bco_pair": "bco with shift: none",
    "kto_pair": "kto",
    "sigmoid_norm": "sigmoid with ratio: mean",
    "orpo": "odds_ratio",
    "rdpo": "r-dpo",
    "reverse_kl": "sigmoid",
    "tdpo2": "tdpo",
}
"""Names of losses in other libraries, and what they are here."""

RESERVED = {"loss", "alpha", "nll_weight", "name", "weight"}
"""What a loss cannot call a setting: keys of the method, and its weight."""

Weight = Annotated[float, Field(ge=0, description="weight of the loss")]


class Term(NamedTuple):
    """One loss of a method, with its weight and its settings."""

    name: str
    loss: Loss
    weight: float
    settings: dict[str, Any]

    def of_tokens(self) -> Callable[..., Any] | None:
        """Return the loss's function of distributions with the settings that it takes; None if it has none."""
        call = self.loss.of_tokens
        return call and partial(call, **{key: self.settings[key] for key in _keywords(call) if key in self.settings})


def _keywords(call: Any) -> dict[str, inspect.Parameter]:
    return {p.name: p for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY}


def compares_tokens(loss: Loss) -> bool:
    """Return whether its function of distributions takes the reference's as well as the policy's."""
    if loss.of_tokens is None:
        return False
    signature = inspect.signature(loss.of_tokens)
    return len(signature.parameters) - len(_keywords(loss.of_tokens)) > 1


def settings_of(loss: Loss) -> type[Settings]:
    """Return the model of a loss's settings, by the keyword-only arguments of its function."""
    return _settings_of(loss.function)


@cache
def _settings_of(function: Callable[..., Any]) -> type[Settings]:
    scope, fields = getattr(function, "__globals__", {}), dict[str, Any]()
    for name, p in _keywords(function).items():
        kind = eval(p.annotation, scope) if isinstance(p.annotation, str) else p.annotation
        fields[name] = (kind, ... if p.default is p.empty else p.default)
    return create_model(function.__name__, __base__=Settings, **fields)


class LossSettings(Settings):
    """Settings of a method that takes its loss from the group ``align.losses``.

    A setting of the method goes to every chosen loss that has it and does not set it itself.
    """

    reference: ClassVar[bool]
    """Whether the method has a reference."""
    first: ClassVar[str]
    """The loss that is used by default."""
    loss: Any = Field(None, description=ABOUT)
    nll_weight: float = Field(
        0.0, ge=0, alias="alpha", description="weight of the NLL of the chosen completion, added to the loss (RPO)"
    )

    @classmethod
    def with_sections(cls, values: Mapping[str, Any]) -> type[Self]:
        """Return the model with the settings of the losses that ``values`` name.

        Settings of other losses are accepted at their neutral value, with which those losses do without them, and left out.
        """
        bare = cls._bare()
        named = _named(values.get("loss", bare.first))
        try:
            losses = {name: load(find("align.losses", name)) for name in named}
        except PluginError:  # reported for the key, by _usable; until then, any setting may be one of that loss
            unread: dict[str, Any] = dict.fromkeys(values.keys() - RESERVED, (Any, None))
            return create_model(bare.__name__, __base__=bare, **unread)
        kind: Any = str
        if isinstance(values.get("loss"), Mapping):
            parts: dict[str, Any] = {name: (_part(losses[name], given), ...) for name, given in named.items()}
            kind = create_model("Losses", __base__=Settings, **parts)
        made = bare._completed(losses, named, kind)
        neutral = _neutral(values, made)
        return create_model(made.__name__, __base__=made, **neutral) if neutral else made

    @classmethod
    def documented(cls) -> type[Self]:
        """Return the model with the settings of every installed loss, for its schema."""
        losses = {name: load(entry) for name, entry in usable("align.losses").items()}
        fitting = {name: loss for name, loss in losses.items() if cls._bare().misfit(name, loss) is None}
        kind = Literal[tuple(fitting)] | dict[str, float | dict[str, Any]]  # type: ignore[valid-type]
        return cls._bare()._completed(fitting, {name: {} for name in fitting}, kind)

    @classmethod
    def _bare(cls) -> type[Self]:
        return next(base for base in cls.__mro__ if "first" in vars(base))

    @classmethod
    def _completed(cls, losses: Mapping[str, Loss], named: Mapping[str, Mapping[str, Any]], kind: Any) -> type[Self]:
        found: dict[str, dict[str, FieldInfo]] = {}
        for name, loss in losses.items():
            for key, info in settings_of(loss).model_fields.items():
                if key not in named[name] and info.alias not in named[name]:
                    found.setdefault(key, {})[name] = info
        fields: dict[str, Any] = {key: _shared(infos) for key, infos in found.items()}
        fields["loss"] = (kind, Field(cls.first, description=ABOUT))
        if len(losses) == 1:
            alpha = cls.model_fields["nll_weight"]
            weight = next(iter(losses.values())).nll_weight
            fields["nll_weight"] = (float, Field(weight, ge=0, alias="alpha", description=alpha.description))
        made: type[Self] = create_model(cls.__name__, __base__=cls, __module__=cls.__module__, **fields)
        made.__doc__ = cls.__doc__
        return made

    @classmethod
    def misfit(cls, name: str, loss: Loss) -> str | None:
        """Return why a loss cannot be used by this method; None if it can."""
        if loss.rows != "preference":
            return f"loss {name} is for {loss.rows} rows, and this method trains on pairs"
        if loss.whole_step and loss.of_tokens:
            return f"loss {name} compares all pairs of a step and every token's distributions (of_tokens): one of them only"
        if ("reference" in loss.needs or compares_tokens(loss)) and not cls.reference:
            return f"loss {name} needs a reference: use --method dpo"
        if taken := RESERVED & settings_of(loss).model_fields.keys():
            return f"loss {name} has a setting called {min(taken)}, which is one of the method's: give it another name"
        return None

    @field_validator("loss", mode="before")
    @classmethod
    def _usable(cls, value: Any) -> Any:
        if not isinstance(value, str | Mapping) or not value:
            raise ValueError("must be the name of a loss, or a mapping of losses to weights")
        for name in _named(value):
            try:
                problem = cls.misfit(name, load(find("align.losses", name)))
            except PluginError as error:
                here = ELSEWHERE.get(name)
                raise ValueError(f"loss {name} is {here} here" if here else str(error)) from error
            if problem:
                raise ValueError(problem)
        return value

    @field_validator("loss")
    @classmethod
    def _trained(cls, value: Any) -> Any:
        if not isinstance(value, str) and not any(weight for weight, _ in _parts(value).values()):
            raise ValueError("the weights of all losses are 0")
        return value

    @field_validator("nll_weight")
    @classmethod
    def _one_nll(cls, value: float, info: ValidationInfo) -> float:
        losses = info.data.get("loss")
        if value and (losses == "nll" or "nll" in getattr(type(losses), "model_fields", ())):
            raise ValueError("it is the weight of the loss nll, which is chosen already: set one of them")
        return value

    @field_serializer("loss")
    def _as_given(self, value: Any) -> Any:
        return value if isinstance(value, str) else value.model_dump(exclude_unset=True, by_alias=True)

    def terms(self) -> list[Term]:
        """Return the chosen losses with their weights and settings, the NLL last."""
        found = []
        for name, (weight, own) in (
            {self.loss: (1.0, {})} if isinstance(self.loss, str) else _parts(self.loss)
        ).items():
            loss = load(find("align.losses", name))
            keys = settings_of(loss).model_fields
            shared = {key: getattr(self, key, None) for key in keys}
            given = {key: value for key, value in (shared | own).items() if value is not None}
            found.append(Term(name, loss, weight, dict(settings_of(loss)(**given))))
        if self.nll_weight:
            found.append(Term("nll", load(find("align.losses", "nll")), self.nll_weight, {}))
        return found


def chosen(losses: Any) -> list[Loss]:
    """Return the losses of a validated value of the key ``loss``."""
    names = [losses] if isinstance(losses, str) else type(losses).model_fields
    return [load(find("align.losses", name)) for name in names]


def _named(value: Any) -> dict[str, Mapping[str, Any]]:
    """Return the names of losses in a value of the key ``loss``, each with the settings that are given there."""
    if isinstance(value, Mapping):
        return {str(name): given if isinstance(given, Mapping) else {} for name, given in value.items()}
    return {value: {}} if isinstance(value, str) else {}


def _part(loss: Loss, given: Mapping[str, Any]) -> Any:
    """Return the type of a loss's entry in a mapping: a weight, or a weight and settings."""
    if not given:
        return Weight
    fields: dict[str, Any] = {
        key: (_kind(info) | None, Field(None, alias=info.alias, description=info.description))
        for key, info in settings_of(loss).model_fields.items()
    }
    fields |= _neutral(given, settings_of(loss))
    return create_model(loss.function.__name__, __base__=Settings, weight=(Weight, 1.0), **fields)


def _neutral(given: Mapping[str, Any], known: type[Settings]) -> dict[str, Any]:
    """Return a field, which is left out of what is recorded, for each given setting that only other losses have, if it is neutral."""
    mine = {name for key, info in known.model_fields.items() for name in (key, info.alias)}
    others = {key: value for key, value in given.items() if key not in mine | RESERVED and not isinstance(value, bool)}
    if not others:
        return {}
    found = set()
    for entry in usable("align.losses").values():
        with suppress(PluginError):  # a broken one is reported where it is used
            for key, info in settings_of(load(entry)).model_fields.items():
                extra: Any = info.json_schema_extra
                if isinstance(extra, dict) and "neutral" in extra:
                    found |= {name for name in (key, info.alias) if name in others and others[name] == extra["neutral"]}
    return {name: (Any, Field(None, exclude=True)) for name in found}


def _parts(losses: Any) -> dict[str, tuple[float, dict[str, Any]]]:
    """Return weight and settings of each loss of a validated mapping."""
    found = {}
    for name in type(losses).model_fields:
        part = getattr(losses, name)
        given = (
            {"weight": part}
            if isinstance(part, float)
            else {key: getattr(part, key) for key in part.model_fields_set if not type(part).model_fields[key].exclude}
        )
        found[name] = (given.pop("weight", 1.0), given)
    return found


def _kind(info: FieldInfo) -> Any:
    return Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation


def _shared(infos: Mapping[str, FieldInfo]) -> tuple[Any, FieldInfo]:
    """Return the type of a setting that several losses have: theirs, or where they differ, a choice whose default is each one's own."""
    first, *others = infos.values()
    if all((_kind(info), info.default) == (_kind(first), first.default) for info in others):
        return _kind(first), first
    kinds = tuple(dict.fromkeys(_kind(info) for info in infos.values()))
    defaults = ", ".join(f"{info.default} for {name}" for name, info in infos.items())
    about = f"{first.description} (default: {defaults})"
    choice: Any = Union[(*kinds, None)]
    default: Any = Field(None, alias=first.alias, description=about)
    return choice, default
