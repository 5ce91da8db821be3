"""Sessions: invalid plugins are refused when a run opens, and the results of hooks are checked."""

import re

import pytest
import torch
from alignkit import Batch, Example, LossOutput, LossTerm, Metric, RunConfig
from alignkit.contract import hooks as hookspecs
from alignkit.errors import ConfigError, PluginError, RunFailedError
from alignkit.training.session import Session

from tests.helpers.third_party import METHOD

BATCH = Batch([Example("a", [1, 2], ([3], [4, 5])), Example("b", [1], ([3, 4], [5]))])

SERVICE = """
from alignkit import hookimpl

seen = []

@hookimpl
def align_log(record):
    seen.append(record)
"""


def configuration(method="mine", services=(), **settings):
    return RunConfig(method={"name": method, **settings}, data="d", run={"services": list(services)})


def refused(*arguments, **options):
    with pytest.raises(PluginError) as caught:
        Session.open(configuration(*arguments, **options))
    return str(caught.value)


@pytest.fixture
def mine(site):
    """Install the test method with some text replaced, or lines added to its class."""

    def install(replace=None, extra=""):
        source = METHOD.rstrip() + "\n" + "".join(f"    {line}\n" for line in extra.splitlines())
        for old, new in (replace or {}).items():
            assert old in source
            source = source.replace(old, new)
        site.install("align-mine", source, mine="align_mine:Mine")

    return install


def test_the_method_gets_its_settings_and_computes(mine):
    mine()
    session = Session.open(configuration(mu=2))
    assert session.method.settings.strength == 2
    output = session.compute_loss(policy=None, batch=BATCH, progress=0.0)
    assert [(term.name, term.sum.item(), term.per) for term in output.terms] == [("mine", 2.0, "rows")]


def test_optional_hooks_default_to_none_and_the_batch_itself(mine):
    mine()
    session = Session.open(configuration())
    assert session.build_model() is None
    assert session.build_trainer(parts=None) is None
    assert session.load_data("somewhere", None) is None
    assert session.prepare_batch(None, BATCH, 0.5) is BATCH


@pytest.mark.parametrize("name", ["sft", "dpo", "orpo"])
def test_built_in_methods_open(name):
    assert Session.open(RunConfig(method=name)).method.name == name


def test_sessions_share_nothing(mine, site):
    mine()
    site.install("align-tap", SERVICE, group="services", tap="align_tap")
    with_tap, without = Session.open(configuration(services=["tap"])), Session.open(configuration())
    without.log({"step": 1})
    with_tap.log({"step": 2})
    import align_tap

    assert align_tap.seen == [{"step": 2}]
    assert with_tap.plugins is not without.plugins


@pytest.mark.parametrize(("settings", "key"), [({"mu": -1}, "method.mu"), ({"flavuor": "x"}, "method.flavuor")])
def test_wrong_settings_are_refused(mine, settings, key):
    mine()
    with pytest.raises(ConfigError, match=key):
        Session.open(configuration(**settings))


# ------------------------------------------------------------------------------------------------- hooks, checked on opening


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (
            "def align_logg(self, record): ...",
            'implements "align_logg", which is not a hook, did you mean "align_log"?',
        ),
        ("def align_log(self, recrod): ...", 'align_log has no argument "recrod", did you mean "record"?'),
        ("def align_log(self, record=None): ...", 'align_log gives its argument "record" a default'),
        ("def align_log(self, **record): ...", "takes its arguments by position and name, without * or **"),
        ("def align_log(self, *, record): ...", "takes its arguments by position and name, without * or **"),
    ],
)
def test_hooks_that_would_silently_do_nothing(mine, hook, problem):
    mine(extra=f"@hookimpl\n{hook}")
    message = refused()
    assert message.startswith('method "mine" (align-mine 1.2.3)')
    assert problem in message


def test_an_optional_hook_of_a_later_release_is_let_pass(mine):
    mine(extra="@hookimpl(optionalhook=True)\ndef align_from_the_future(self, thing): ...")
    assert Session.open(configuration())


def test_a_method_that_computes_nothing(mine):
    mine({"def align_compute_loss(self, batch)": "def align_log(self, record)"})
    assert "implements neither align_compute_loss nor align_build_trainer" in refused()


def test_a_service_that_implements_nothing(mine, site):
    mine()
    site.install("align-idle", "", group="services", idle="align_idle")
    assert refused(services=["idle"]).startswith('service "idle" (align-idle 1.2.3) implements no hook')


def test_a_plugin_of_a_later_contract_is_refused(site):
    site.install(
        "align-later", METHOD.replace('name = "mine"', 'name = "later"\n    contract = 99'), later="align_later:Mine"
    )
    with pytest.raises(
        PluginError, match="was written for contract 99, and this alignkit has contract 1: upgrade alignkit"
    ):
        Session.open(RunConfig(method="later"))


@pytest.mark.parametrize("hook", sorted(hookspecs.EXCLUSIVE))
def test_a_service_may_not_take_the_methods_place(mine, site, hook):
    mine()
    source = f"from alignkit import hookimpl\n@hookimpl\ndef {hook}(): ...\n"
    site.install("align-thief", source, group="services", thief="align_thief")
    message = refused(services=["thief"])
    assert message.startswith(f'service "thief" (align-thief 1.2.3) implements {hook}, which belongs to method "mine"')


def test_a_service_may_wrap_the_methods_hook(mine, site):
    mine()
    source = """
    from alignkit import LossOutput, LossTerm, hookimpl

    class Doubler:
        @hookimpl(wrapper=True)
        def align_compute_loss(self):
            output = yield
            return LossOutput([term._replace(sum=2 * term.sum) for term in output.terms])
    """
    site.install("align-doubler", source, group="services", doubler="align_doubler:Doubler")
    session = Session.open(configuration(services=["doubler"]))
    assert session.compute_loss(None, BATCH, 0.0).terms[0].sum.item() == 4.0


def test_a_service_that_cannot_be_set_up(mine, site):
    mine()
    source = "class Broken:\n    def __init__(self):\n        raise OSError('no server')\n"
    site.install("align-broken", source, group="services", broken="align_broken:Broken")
    message = refused(services=["broken"])
    assert message == 'service "broken" (align-broken 1.2.3) cannot be set up: OSError: no server'
    assert 'unknown service "brokn", did you mean "broken"?' in refused(services=["brokn"])


# ------------------------------------------------------------------------------------------------- broadcast hooks


def test_every_plugin_hears_of_the_run(mine, site, tmp_path):
    mine(extra="heard = []\n@hookimpl\ndef align_run_started(self, directory): self.heard.append(directory)")
    source = """
    from alignkit import hookimpl
    heard = []
    @hookimpl
    def align_run_started(config, directory): heard.append((config.method.name, directory))
    @hookimpl
    def align_checkpoint_saved(step, path): heard.append((step, path))
    @hookimpl
    def align_run_finished(summary): heard.append(summary)
    """
    site.install("align-tap", source, group="services", tap="align_tap")
    session = Session.open(configuration(services=["tap", "tap"]))  # named twice, registered once
    session.run_started(tmp_path)
    session.checkpoint_saved(3, tmp_path / "c")
    session.run_finished({"status": "finished"}, tmp_path)
    import align_tap

    assert align_tap.heard == [("mine", tmp_path), (3, tmp_path / "c"), {"status": "finished"}]
    assert session.method.heard == [tmp_path]


def test_the_first_plugin_that_knows_a_source_loads_it(mine, site):
    mine()
    for name, source in (("one", "one:"), ("two", "two:")):
        code = f"""
        from alignkit import RawRows, hookimpl
        @hookimpl
        def align_load_data(source):
            if source.startswith({source!r}):
                return RawRows([{{"from": {name!r}}}], str, source)
        """
        site.install(f"align-{name}", code, group="services", **{name: f"align_{name}"})
    session = Session.open(configuration(services=["one", "two"]))
    assert session.load_data("one:x", None).rows == [{"from": "one"}]
    assert session.load_data("two:x", None).rows == [{"from": "two"}]
    assert session.load_data("x.jsonl", None) is None


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("__import__('sys').exit(0)", "SystemExit: 0"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise type('Stop', (BaseException,), {})('now')", "Stop: now"),
        ("raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})()", "Mute"),
        ("align_log(record)", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_what_ends_a_hook_becomes_an_error_that_names_plugin_hook_and_line(mine, site, raised, says):
    mine()
    code = f"from alignkit import hookimpl\n@hookimpl\ndef align_log(record): {raised}\n"
    site.install("align-tap", code, group="services", tap="align_tap")
    with pytest.raises(RunFailedError) as caught:
        Session.open(configuration(services=["tap"])).log({})
    assert str(caught.value).startswith(f'service "tap" (align-tap 1.2.3) failed in align_log: {says}')
    assert str(caught.value).endswith("align_tap.py:3)")


def test_a_lack_of_memory_and_an_interrupt_keep_their_types(mine, site):
    mine({"return LossOutput": "raise MemoryError('full')\n        return LossOutput"})
    code = "from alignkit import hookimpl\n@hookimpl\ndef align_log(record): raise KeyboardInterrupt\n"
    site.install("align-tap", code, group="services", tap="align_tap")
    session = Session.open(configuration(services=["tap"]))
    with pytest.raises(MemoryError) as caught:
        session.compute_loss(None, BATCH, 0.0)
    assert caught.value.__notes__ == ['in align_compute_loss of method "mine" (align-mine 1.2.3)']
    with pytest.raises(KeyboardInterrupt):
        session.log({})


def test_what_hooks_print_goes_to_stderr(mine, site, capfd):
    mine()
    code = "import os\nfrom alignkit import hookimpl\nprint('imported')\n"
    code += "@hookimpl\ndef align_log(record):\n    print('printed')\n    os.write(1, b'written')\n"
    site.install("align-tap", code, group="services", tap="align_tap")
    Session.open(configuration(services=["tap"])).log({})
    out, err = capfd.readouterr()
    assert out == ""
    assert {"imported", "printed", "written"} <= set(err.split())


# ------------------------------------------------------------------------------------------------- results of hooks

ONE = torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "must return an alignkit.LossOutput, not NoneType"),
        (ONE, "must return an alignkit.LossOutput, not Tensor"),
        (LossOutput([]), "returned no loss term"),
        (LossOutput([LossTerm("nll", 1.0, "rows")]), 'term "nll" must be a tensor, not float'),
        (LossOutput([LossTerm("nll", ONE * torch.ones(3), "rows")]), 'term "nll" must be a sum'),
        (LossOutput([LossTerm("nll", ONE, "token")]), 'per "token", which is not a count, did you mean "tokens"?'),
        (LossOutput([LossTerm("nll", ONE, "rows")] * 2), "returned two terms called 'nll'"),
        (LossOutput([LossTerm("nll", ONE.detach(), "rows")]), "returned no term with a gradient"),
        (LossOutput([LossTerm("nll", ONE, "rows")], {"m": Metric(ONE, "rows")}), 'metric "m" has a gradient'),
        (LossOutput([LossTerm("nll", ONE, "rows")], {"m": Metric(2, "rows")}), 'metric "m" must be a tensor, not int'),
        (LossOutput([LossTerm("nll", ONE, "rows")], {"m": Metric(ONE.detach(), "x")}), 'metric "m" is per "x"'),
    ],
)
def test_losses_the_engine_could_not_divide(mine, answer, problem):
    mine({'return LossOutput([LossTerm("mine", weight * len(batch), "rows")])': "return self.answer"})
    session = Session.open(configuration())
    session.method.answer = answer
    with pytest.raises(PluginError, match=re.escape(problem)) as caught:
        session.compute_loss(None, BATCH, 0.0)
    assert str(caught.value).startswith('method "mine" (align-mine 1.2.3): align_compute_loss')


def test_evaluation_needs_no_gradient_and_own_counts_are_counts(mine):
    mine({'return LossOutput([LossTerm("mine", weight * len(batch), "rows")])': "return self.answer"})
    session = Session.open(configuration())
    session.method.answer = LossOutput([LossTerm("nll", ONE.detach(), "words")])
    with torch.no_grad():
        assert session.compute_loss(None, Batch(BATCH.examples, row_counts={"words": [1, 2]}), 0.0)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ([], "must return an alignkit.Batch or None, not list"),
        (BATCH.with_column("advantage", [1.0]), 'returned 1 values of "advantage" for 2 rows'),
    ],
)
def test_batches_that_could_not_be_cut(mine, answer, problem):
    mine(extra="@hookimpl\ndef align_prepare_batch(self): return self.answer")
    session = Session.open(configuration())
    session.method.answer = answer
    with pytest.raises(PluginError, match=re.escape(problem)):
        session.prepare_batch(None, BATCH, 0.0)
