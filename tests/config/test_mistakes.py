"""What authors of components get wrong is said in one line, with file and line, before it costs them a run."""

import re
from pathlib import Path

import pytest
from conftest import QUICK, train_round

import fedalg
from fedmerge.config.parser import typed_settings
from fedmerge.errors import InputError
from fedmerge.simulation.experiment import prepare

IMPORTS = """
import random

import numpy as np
import torch
from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.compressors.base import Compressor
from fedmerge.datasets.images import Images
from fedmerge.local_methods.base import LocalMethod
from fedmerge.merging import statistic
from fedmerge.registry import *
"""
ALGORITHM = '@algorithm("mine")\nclass Mine(FedAvg):\n    """it"""\n'
NETWORK = '@network("mine", norms=("none",))\ndef mine(channels, image_size, n_classes, norm):\n    """it"""\n'
RULE = '@merging_rule("mine", needs=("update",))\ndef mine(aggregate, layout):\n    """it"""\n'
PARTITION = '@partition("mine")\ndef mine(classes, n_clients, value, rng):\n    """it"""\n'
DATASET = '@dataset("mine", model="cnn")\ndef mine(root, seed):\n    """it"""\n'
COMPRESSOR = (
    '@compressor("mine")\nclass Mine(Compressor):\n    """it"""\n    def choose(self, change, start, client):\n'
)
HEAD_FIRST = """
class HeadFirst(torch.nn.Module):
    def __init__(self, channels, image_size, n_classes):
        super().__init__()
        self.head = torch.nn.Linear(20, n_classes)
        self.body = torch.nn.Linear(channels * image_size**2, 20)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).relu())
"""
CORRECTION = "    def gradient_correction(self, w, start, client):\n        "
LOCAL = '@local_method("mine")\nclass Mine(LocalMethod):\n    def __call__(self, client, start, correction):\n'
FLAG = {
    "local_method": "local",
    "algorithm": "algorithm",
    "network": "model_name",
    "merging_rule": "merge",
}  # of a decorator, if not its name


def of_update(sent):
    return f"{ALGORITHM}    def client_update(self, delta, start, client):\n        return {sent}\n"


HIDING = """
    def __init__(self, layout, run=None, **options):
        super().__init__(layout, run, **options)
        self.hidden = {}

    def acknowledge(self, client, decoded):
        self.hidden[client.id] = client.round
"""
DECLARED = [  # what is known of the source
    (ALGORITHM.replace('"mine"', '"../mine"'), r"the name '../mine' is none: letters"),
    (
        ALGORITHM + '    defaults = {"mometum": 0.5}\n',
        r"defaults: there is no flag --mometum \(did you mean --mom",
    ),
    (ALGORITHM + '    defaults = {"momentum": 1.5}\n', r"defaults: --momentum: '1.5' is not a number in \[0, 1\)"),
    (
        ALGORITHM + '    defaults = {"merge": "middle"}\n',
        r"defaults: --merge: 'middle' is none of breadcrumbs, consensus, dare",
    ),
    (ALGORITHM + '    defaults = {"eval_train": 1}\n', r"defaults: --eval_train: 1 is neither True nor False"),
    (ALGORITHM + '    presets = {"p": {"mometum": 0.5}}\n', r"preset p: there is no flag --mometum"),
    (ALGORITHM.replace('"mine"', '"mine", requires={"locl": ("sgd",)}'), r"requires: there is no flag --locl"),
    (ALGORITHM.replace('"mine"', '"mine", requires={"local": "sgd"}'), r"requires of --local 'sgd': is no tuple"),
    (ALGORITHM.replace('"mine"', '"mine", titel="M"'), r"registered with titel=.*did you mean title"),
    (COMPRESSOR + '        pass\n    defaults = {"lr": 1.0}\n', r"mine: defaults and presets are an algorithm's"),
    ('@merging_rule("yours", needs=("mask",))\n' + RULE, r"mine is registered twice"),
    (ALGORITHM + '    options = {"my": (1.5, "share", "how much")}\n', r"--my: its default: '1.5' is not a share"),
    (ALGORITHM + '    options = {"my": (1, "count", "n", "no=1")}\n', r"--my needs --no, and there is no such flag"),
    (NETWORK.replace('("none",)', '"none"'), r"norms='none' is no tuple of some of batch, group, none"),
    (PARTITION.replace('"mine"', '"mine", value="int"'), r"value='int' is none of count, integer"),
    (DATASET.replace('"cnn"', '"cnm"'), r"model='cnm' is none of --model_name"),
    (ALGORITHM.replace('"mine"', '"mine", title=5'), r"title=5 is not a text"),
    (
        ALGORITHM.replace('"mine"', '"mine", **{"title": "M"}'),
        r"Mine: what registers it is read, not run: a name, then",
    ),
    (ALGORITHM.replace('"mine"', '["mine"]'), r"Mine: the name \['mine'\] is none: letters"),
    (ALGORITHM.replace('"mine"', "{[]: 1}"), r"the name of Mine: unhashable type: 'list'"),
    (ALGORITHM.replace('"mine"', '"mine", requires=["local"]'), r"requires=\['local'\] is not a dict"),
    (ALGORITHM.replace('"mine"', '"mine", requires={5: ("sgd",)}'), r"requires: 5 is no flag"),
    (ALGORITHM.replace('"mine"', '"mine", server_residual="no"'), r"server_residual='no' is not True or False"),
    (ALGORITHM.replace('"mine"', '"mine", defaults=5'), r"Mine: defaults: 5 is no dict {flag: value}"),
    (ALGORITHM + "    defaults = 5\n", r"Mine: defaults: 5 is no dict {flag: value}"),
    (ALGORITHM + '    defaults = {5: "lr"}\n', r"Mine: defaults: {5: 'lr'} is no dict {flag: value}"),
    (ALGORITHM + '    defaults |= {"lr": 1.0}\n', r"defaults of Mine: is read, not run, and must be written out once"),
    (ALGORITHM + '    defaults = {"n_epochs": "3"}\n', r"defaults: --n_epochs: '3' is a text: write 3"),
    (ALGORITHM + '    defaults = {"algorithm": "las"}\n', r"defaults: --algorithm is known before them"),
    (ALGORITHM + "    presets = [1]\n", r"Mine: presets: \[1\] is no dict"),
    (ALGORITHM + '    presets = {"p": 5}\n', r"Mine: preset p: 5 is no dict {flag: value}"),
    (ALGORITHM + '    presets = {"p q": {}}\n', r"Mine: a preset is called 'p q': no name"),
    (ALGORITHM + '    options = {"my": ("3", "count", "n")}\n', r"--my: its default: '3' is a text: write 3"),
    (ALGORITHM + '    options = {"my": (3, "path", "n")}\n', r"--my: its default: 3 is no text: write '3'"),
    (ALGORITHM + '    options = {"my": (None, "flag", "n")}\n', r"--my: its default: None is neither True nor False"),
    (ALGORITHM + '    options = {"my": (1, ["a"], "n")}\n', r"--my is of the kind \['a'\]: count"),
    (ALGORITHM + '    options = {"my": (1, "count", "n", 5)}\n', r"--my needs 5, which is no text"),
    (ALGORITHM + '    options = {"my": (1, "count", "n", "my")}\n', r"--my needs itself"),
    (
        ALGORITHM + '    options = {"my": (1, "count", "n", "local=sgdd")}\n',
        r"needs --local sgdd: 'sgdd' is none of decorr",
    ),
    (ALGORITHM + '    options = {"my": (1, "count", "n", "lr=0.10")}\n', r"needs --lr 0.10: is written 0.1"),
    (
        ALGORITHM + '    options = {"my": (1, "count", "n", "quiet=1")}\n',
        r"needs --quiet 1: '1' is neither True nor False",
    ),
    (ALGORITHM + '    options = {5: (1, "count", "n")}\n', r"an option is called 5, which is no name"),
    (ALGORITHM + '    options = {"if": (1, "count", "n")}\n', r"an option is called 'if', which is no name"),
    (ALGORITHM + '    options = {"a": (1, "count", "n"), "a": (2, "count", "n")}\n', r"Mine has the option a twice"),
    (
        ALGORITHM + '    options |= {"my": (1, "count", "n")}\n',
        r"options of Mine: is read, .* out once: options = {...}",
    ),
    (
        ALGORITHM + '    options = {}\n    options["my"] = 1\n',
        r"options of Mine: is read, not run, and must be written",
    ),
    *(
        (
            ALGORITHM + f'    options = {{"{name}": (1, "count", "n")}}\n',
            rf"mine declares --{name} otherwise than every",
        )
        for name in ("config", "recipe", "help", "rounds", "keep", "callbacks", "residual")
    ),
    *(
        (ALGORITHM + f'    options = {{"{name}": (1, "count", "n")}}\n', rf"Mine has an option {name}, which its base")
        for name in ("self", "layout", "run", "train", "uploads", "options", "acknowledge")
    ),
    (
        RULE.replace("needs", 'options={"layout": (1, "count", "n")}, needs'),
        r"mine: --layout is called as aggregate, layout are: another name",
    ),
    (RULE.replace(', needs=("update",)', ""), r"mine: needs=None is neither a tuple of names"),
    (RULE.replace("needs", 'uploads=("a", "a"), needs'), r"mine: uploads=\('a', 'a'\) is no tuple of names"),
    (RULE.replace("needs", 'uploads="fisher", needs'), r"mine: uploads='fisher' is not a tuple of names"),
    (RULE.replace('("update",)', '"update"'), r"mine: needs='update' is neither a tuple of names"),
    (RULE.replace('("update",)', '["update"]'), r"mine: needs=\['update'\] is neither a tuple of names"),
    (NETWORK.replace('("none",)', "()"), r"norms=\(\) is no tuple of some of batch, group, none"),
    (NETWORK.replace('("none",)', "(5, [])"), r"norms=\(5, \[\]\) is no tuple of some of"),
    (PARTITION.replace('"mine"', '"mine", value=["count"]'), r"value=\['count'\] is not a text"),
    (PARTITION.replace('"mine"', '"mine", title="{k} shards"'), r"title='{k} shards' may hold {value}, and no other"),
    (PARTITION.replace('"mine"', '"mine", value="count,sizes"'), r"value='count,sizes' is none of .* some with commas"),
    (PARTITION.replace('"mine"', '"mine", of="users"'), r"of='users' is neither 'classes' nor 'domains'"),
    (
        PARTITION.replace('"mine"', '"mine", value="count,share", title="{value[2]}"'),
        r"may hold {value}, or {value\[0\]} where it has several",
    ),
    (DATASET.replace('"cnn"', "5"), r"model=5 is not a text"),
    (ALGORITHM.replace("(FedAvg)", "(Mine)"), r"Mine derives from itself"),
    (f"x = 1\n\0\n{ALGORITHM}", r"is not Python \(holds a NUL character\)"),
]
MEASURING = (
    "def lengths(layout):\n    return LENGTHS\n\n\ndef measure(client):\n    return {'a': client.model.gradient}\n\n\n"
    + RULE.replace("needs", 'uploads=("a",), measure=measure, lengths=lengths, needs')
)
IMPORTED = [  # what is seen before a client trains
    (RULE.replace("needs", 'uploads=("a",), needs'), r"mine: uploads=\('a',\) needs measure=\.\.\., and lengths"),
    (
        MEASURING.replace("measure(client)", "measure(clients, more)").replace("LENGTHS", '{"a": 1}'),
        r"measure: is called with \(client\)",
    ),
    (MEASURING.replace("lengths(layout)", "lengths()"), r"lengths: is called with \(layout\)"),
    (MEASURING.replace("LENGTHS", '{"b": 1}'), r"mine: uploads=\('a',\) needs measure=.*of the same names"),
    (
        ALGORITHM + "    def gradient_corection(self, w, start, client):\n        pass\n",
        r"did you mean gradient_c",
    ),
    (COMPRESSOR.replace("choose", "chose") + "        pass\n", r"Mine.chose: did you mean choose\?"),
    (ALGORITHM + '    uploads = "control"\n', r"Mine: uploads = 'control' is no tuple of names"),
    (ALGORITHM + '    server_state = ("a", "a")\n', r"Mine: server_state = .* is no tuple of names"),
    (ALGORITHM + '    uploads = ("mask",)\n    statistics = ("mask",)\n', r"Mine: uploads has mask, .* another name"),
    (ALGORITHM + '    statistics = ("sing",)\n', r"Mine: needs 'sing', which is no statistic, nor sent: update"),
    (ALGORITHM + '    broadcasts = ("control",)\n', r"Mine: broadcasts names control, but there is"),
    (ALGORITHM.replace("(FedAvg)", ""), r"Mine: must be a class derived from FedAvg"),
    (
        ALGORITHM + "    def merge(self, theta, aggregate):\n        return theta\n",
        r"Mine.merge: is called with",
    ),
    (ALGORITHM + "    def gradient_correction(self, w):\n        return w\n", r"is called with \(self, w, start, clie"),
    (
        'make = lambda: type("Made", (FedAvg,), {"options": {"my": (1, "count", "n")}})\n\n'
        + ALGORITHM.replace("(FedAvg)", "(make())"),
        r"Mine: the option my is another than its source says, which is read",
    ),
    ("import sys\n\nsys.exit()\n" + ALGORITHM, r"SystemExit: ends the program as it is imported"),
    (RULE.replace("aggregate, layout", "aggregate"), r"mine: is called with \(aggregate, layout\): too many"),
    (RULE.replace("needs", 'options={"my": (1, "count", "n")}, needs'), r"is called with \(aggregate, layout, my\): "),
    (COMPRESSOR.replace(", start, client", "") + "        return change > 0\n", r"Mine.choose: is called with"),
    (PARTITION + "    return [1, 2], [0]\n", r"mine: returns no \(positions, owners\)"),
    (
        PARTITION + "    return np.arange(9**4), np.arange(9**4) % n_clients\n",
        r"mine: positions go from 0 to 6560",
    ),
    (PARTITION + "    return np.arange(99), np.arange(99)\n", r"mine: owners go from 0 to 98, not from 0 to"),
    (
        PARTITION + "    return np.arange(99) // 2, np.arange(99) % n_clients\n",
        r"mine: the sample at 0 has several",
    ),
    (
        NETWORK + "    return HeadFirst(channels, image_size, n_classes)\n" + HEAD_FIRST,
        r"its last layer, head, must",
    ),
    (
        ALGORITHM + "    def merge(self, step, theta, aggregate):\n        return theta + step\n",
        r"Mine.merge: is called with \(self, theta, step, aggregate\), by position: step stands where theta is",
    ),
    (
        RULE.replace("aggregate, layout", "layout, aggregate"),
        r"mine: is called with \(aggregate, layout\), by position",
    ),
    (
        '@statistic("own")\ndef a(update, begin, end):\n    pass\n\n\n@statistic("own")\n'
        "def b(update, begin, end):\n    pass\n\n\n" + RULE.replace("update", "own"),
        r"b: the statistic own is there already: a",
    ),
    *(
        (PARTITION + f"    return np.arange(99), {draw} % n_clients\n", r"mine: draws another split from the same rng")
        for draw in (
            "np.random.permutation(99)",
            "torch.randperm(99).numpy()",
            "np.array(random.sample(range(99), 99))",
        )
    ),
    (NETWORK + "    return torch.nn.Linear\n", r"mine: returns the class Linear, not a torch.nn.Module with"),
    (
        NETWORK + "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(n_classes))\n",
        r"mine: 1.weight is of a lazy layer",
    ),
    (
        NETWORK + "    one = torch.nn.Linear(64, 64)\n    one.b = one.weight\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), one, torch.nn.Linear(64, n_classes))\n",
        r"mine: 1.b is 1.weight once more",
    ),
    (
        DATASET + "    return 2 * (Images(torch.ones(9, 1, 8, 8).byte(), torch.arange(9)),) + (8,)\n",
        r"mine: has training labels outside 0..7",
    ),
    (NETWORK + "    return None\n", r"mine: returns a NoneType, not a torch.nn.Module"),
    (NETWORK + "    return torch.nn.ReLU()\n", r"mine: returns a ReLU, not a torch.nn.Module with parameters"),
    (NETWORK + "    return torch.nn.Linear(3, n_classes)\n", r"mine: fails on float32 \[1, 1, 8, 8\]: mat1 and mat2"),
    (NETWORK + "    return torch.nn.Conv2d(1, 3, 3)\n", r"mine: makes float32 \[1, 3, 6, 6\] of one image, not"),
    (DATASET + "    return 1, 2\n", r"mine: returns no \(train, test, n_classes\)"),
    (DATASET + "    return 1, 2, 10\n", r"mine: train is a int, not Images"),
    (
        DATASET + "    return 2 * (Images(torch.ones(9, 1, 8, 8), torch.arange(9)),) + (9,)\n",
        r"mine: the images of trai",
    ),
    (
        DATASET + "    return 2 * (Images(torch.ones(9, 1, 8, 9).byte(), torch.arange(9)),) + (9,)\n",
        r"not as high as",
    ),
    (
        DATASET + "    return 2 * (Images(torch.ones(9, 1, 8, 8).byte(), torch.ones(9)),) + (9,)\n",
        r"labels of train",
    ),
]
TRAINED = [  # what is seen as the first round goes by
    (
        ALGORITHM + "    def merge(self, theta, step, aggregate):\n        theta += step\n        return theta\n",
        "in place",
    ),
    (ALGORITHM + CORRECTION + "return 0.1\n", r"Mine.gradient_correction: gives a float, not a vector \["),
    (ALGORITHM + CORRECTION + "return w.detach().numpy()\n", r"gives NumPy's float32 \[\d+\], not a vector \["),
    (
        ALGORITHM + "    def client_start(self, received, client):\n        pass\n",
        r"from client_start is a NoneType, not",
    ),
    (
        '@statistic("short")\ndef short(update, begin, end):\n    return update.delta[begin:end][:5]\n\n\n'
        + RULE.replace('("update",)', '("short",)')
        + "    pass\n",
        r"short: the statistic is float32 \[5\], not a vector \[",
    ),
    (ALGORITHM + CORRECTION + "pass\n", r"Mine.gradient_correction: gives a NoneType, not a vector \["),
    (ALGORITHM + CORRECTION + "return w[:9]\n", r"Mine.gradient_correction: gives float32 \[9\], not a vector \["),
    (
        of_update("ClientUpdate(delta) if start.add_(1) is None else ClientUpdate(delta)"),
        r"Mine: changed in place wh",
    ),
    (LOCAL + "        client.model.vector.add_(1)\n", r"Mine: took no step"),
    (ALGORITHM + HIDING, r"Mine: changed self.hidden as clients trained"),
    (
        ALGORITHM + '    uploads = ("control",)\n',
        r"Mine: client_update sends besides the change: none; uploads name",
    ),
    (MEASURING.replace("LENGTHS", '{"a": 1}'), r"measure: a is float32 \[\d+\], not float32 \[1\]"),
    (
        MEASURING.replace("LENGTHS", '{"a": 1}').replace("{'a': client.model.gradient}", "[]"),
        r"measure: returns a list",
    ),
    (MEASURING.replace("LENGTHS", '{"a": 1}').replace("{'a'", "{'b'"), r"measure: measures b, not a"),
    (of_update("ClientUpdate(delta, control=delta)"), r"sends besides the change: control; uploads names: none"),
    (of_update("delta"), r"Mine: client_update returns a Tensor, not a ClientUpdate"),
    (of_update("ClientUpdate(delta[:9])"), r"Mine: the change from client_update is float32 \[9\], not float32 \["),
    (
        of_update("ClientUpdate(delta, a=delta[:9])") + '    uploads = ("a",)\n',
        r"a from client_update is float3",
    ),
    (
        ALGORITHM + "    def merge(self, theta, step, aggregate):\n        theta + step\n",
        r"from merge is a NoneType",
    ),
    (RULE + '    return aggregate.mean["update"][:5]\n', r"mine: the step is float32 \[5\], not float32 \["),
    (RULE + '    return aggregate.mean["update"].double()\n', r"mine: the step is float64 \[.*\], not float32 \["),
    (
        COMPRESSOR + "        return (change > 0).float()\n",
        r"Mine: choose returns no bool tensor \[\d+\], nor None",
    ),
    (
        COMPRESSOR + "        return change[:9] > 0\n",
        r"Mine: choose returns no bool tensor \[\d+\], nor None",
    ),
]


@pytest.fixture
def mine(tmp_path):
    """Return a function (source) -> flags that choose what it registers."""

    def put(source):
        (tmp_path / "mine.py").write_text(IMPORTS + source)
        decorator = re.search(r"^@(?!statistic)(\w+)", source, re.MULTILINE)[1]
        return {"plugin": str(tmp_path / "mine.py"), FLAG.get(decorator, decorator): "mine"}

    return put


def refused(said):
    return pytest.raises(InputError, match=rf"^\S*mine\.py: line \d+: .*{said}")


@pytest.mark.parametrize(("source", "said"), DECLARED, ids=lambda text: text[-40:])
def test_a_slip_in_a_declaration_is_seen_whatever_runs(mine, source, said):
    plugin = mine(source)["plugin"]
    with refused(said):
        typed_settings({"plugin": plugin})


@pytest.mark.slow
@pytest.mark.parametrize(("source", "said"), IMPORTED, ids=lambda text: text[-40:])
def test_what_is_not_as_its_shelf_has_it_is_seen_before_the_first_round(mine, source, said):
    args = typed_settings({**QUICK, **mine(source)})
    with refused(said):
        prepare(args)


@pytest.mark.parametrize(("source", "said"), TRAINED, ids=lambda text: text[-40:])
def test_what_a_hook_returns_is_looked_at(mine, source, said):
    run = prepare(typed_settings({**QUICK, **mine(source)}))
    with refused(said):
        train_round(run, 1)


def test_what_python_reads_is_read(mine, tmp_path):
    """With the mark of some editors before it, in the encoding that it declares, beside a folder called like a file,
    and derived from a class of its own name, or by another name for it."""
    base = "import fedmerge.algorithms.las as las\n\n\nclass LaSFL(las.LaSFL):\n    pass\n\n\nBase = LaSFL\n"
    source = IMPORTS + base + ALGORITHM.replace("(FedAvg)", "(Base)") + '    options = {"my": (1, "count", "n")}\n'
    (tmp_path / "folder.py").mkdir()
    plugin = {**mine(ALGORITHM), "plugin": str(tmp_path)}
    (tmp_path / "mine.py").write_bytes(b"\xef\xbb\xbf" + source.encode())
    assert typed_settings({**plugin, "my": 3}).my == 3
    source = source.replace('it"""', '\xe9t\xe9"""')
    (tmp_path / "mine.py").write_bytes(b"# coding: latin-1\n" + source.encode("latin-1"))
    assert prepare(typed_settings({**QUICK, **plugin, "my": 4})).server.algorithm.my == 4


def test_what_python_does_not_read_is_a_line(mine, tmp_path):
    plugin, path = mine(ALGORITHM), tmp_path / "mine.py"
    path.write_bytes(b"x = 1\n# \xe9\n" + path.read_bytes())
    with pytest.raises(InputError, match=r"mine\.py: line 2: is not utf-8"):
        typed_settings(plugin)
    path.write_text("# coding: none\n" + ALGORITHM)
    with pytest.raises(InputError, match=r"mine\.py: line 1: unknown encoding"):
        typed_settings(plugin)
    path.write_text(IMPORTS + f"x = {'-' * 100_000}1\n{ALGORITHM}")
    with pytest.raises(InputError, match=r"mine\.py: has an expression too deep for Python to read"):
        typed_settings(plugin)


def test_vectors_arrive_by_their_names_in_whatever_order_they_are_sent(mine):
    source = of_update("ClientUpdate(delta, b=torch.full_like(delta, 2), a=torch.ones_like(delta))")
    source += '    uploads = statistics = ("a", "b")\n'
    source += "    def merge(self, theta, step, aggregate):\n"
    source += '        assert aggregate.mean["a"].eq(1).all() and aggregate.mean["b"].eq(2).all()\n'
    source += "        return theta + step\n"
    run = prepare(typed_settings({**QUICK, **mine(source), "norm": "none"}))
    train_round(run, 1)
    assert run.server.layout.dim == run.server.layout.n_trainable


def test_a_statistic_of_another_rules_file_is_found(mine):
    source = ALGORITHM + '    statistics = ("sign",)\n    def merge(self, theta, step, aggregate):\n'
    source += '        assert aggregate.mean["sign"].abs().max() <= 1\n        return theta + step\n'
    train_round(prepare(typed_settings({**QUICK, **mine(source)})), 1)


def test_two_statistics_of_one_name_are_refused(mine):
    source = '@statistic("sign")\ndef sign(update, begin, end):\n    return update.delta[begin:end]\n'
    flags = mine(RULE + '    return aggregate.mean["update"]\n' + source)
    prepare(typed_settings({**QUICK, "merge": "sign"}))
    with pytest.raises(InputError, match=r"sign: the statistic sign is there already, in fedmerge.merging.sign"):
        prepare(typed_settings({**QUICK, **flags}))


def test_the_model_that_is_judged_is_looked_at(mine):
    run = prepare(
        typed_settings({**QUICK, **mine(ALGORITHM + "    def global_model(self, theta):\n        return theta[:5]\n")})
    )
    with refused(r"Mine: the model from global_model is float32 \[5\], not float32 \["):
        run.server.served()


KEEPING = """
    server_state = ("count",)

    def merge(self, theta, step, aggregate):
        self.count = {count}
        return theta + step

    def kept_length(self, name, layout):
        return layout.n_trainable
"""


@pytest.mark.parametrize("count", ["3", "step[:9].clone()", "[1, 2]"])
def test_what_a_checkpoint_could_not_give_back_is_seen_in_the_first_round(mine, count, tmp_path):
    args = typed_settings(
        {**QUICK, **mine(ALGORITHM + KEEPING.replace("{count}", count)), "out": str(tmp_path / "out")}
    )
    with refused("Mine: keeps what no checkpoint can: count"):
        fedalg.main(args)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("options = {", "options: dict = {"),
        ("@algorithm(", "@registry.algorithm("),
        ("class Mine(FedAvg)", "class Mine(Parent)"),
    ],
)
def test_what_can_be_written_in_several_ways_is_read_in_each(mine, old, new):
    source = ALGORITHM + '    options = {"my": (1, "count", "n")}\n'
    assert old in source
    imports = "from fedmerge import registry\nfrom fedmerge.algorithms.las import LaSFL as Parent\n"
    flags = mine(source) | {"my": 3}
    path = Path(flags["plugin"])
    path.write_text(IMPORTS + imports + source.replace(old, new))
    args = typed_settings({**QUICK, **flags} | ({"server_momentum": 0.5} if "Parent" in new else {}))
    assert prepare(args).server.algorithm.my == 3
