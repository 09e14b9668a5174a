"""Recipes: what is read, stored and compared, and the one line that each mistake gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from dav_ray.config.keys.describe import fields
from dav_ray.config.recipe.differences import differing_keys
from dav_ray.config.recipe.load import from_yaml, load, shipped
from dav_ray.errors import UserError

MINIMAL = "model: {path: org/name}\nprompts: [cat, dog]\nreward: {kind: brightness}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    return str(path)


def lines(recipe: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(recipe, overrides)
    return caught.value.lines


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_loads(name: str) -> None:
    loaded = load(name)
    assert loaded.name == name
    assert from_yaml(loaded.yaml, "config.yaml").config == loaded.config


def test_overrides_and_defaults(recipe: str) -> None:
    config = load(recipe, ["search.alpha=1e-3", "prompts=[a,b,c]", "reward.args={colour: [1, 0, 0]}"]).config
    assert config.search.alpha == 0.001
    assert config.prompts == ("a", "b", "c")
    assert config.reward[0].args == {"colour": [1, 0, 0]}
    assert config.lora_targets == ("to_q", "to_k", "to_v", "to_out.0")


def test_an_entry_of_a_list_is_named_by_its_index_unless_it_is_alone(recipe: str) -> None:
    two = "reward=[{kind: brightness}, {kind: target_colour}]"
    assert load(recipe, [two, "reward[1].weight=2", "reward.0.weight=3"]).config.reward[1].weight == 2
    assert load(recipe, ["reward=[{kind: brightness}]", "reward.kind=x"]).config.reward[0].kind == "x"
    assert lines(recipe, two, "reward.weight=2") == [
        "reward.weight=2: there are 2 entries here; name one, for instance reward[0].weight"
    ]
    assert lines(recipe, two, "reward[2].weight=2") == ["reward[2].weight=2: there is no entry 2, only 2"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("search.alhpa=3", "search.alhpa: unknown key; did you mean search.alpha?"),
        ("alpha=3", "alpha: unknown key; did you mean search.alpha?"),
        ("search.learning_rate=1", "search.learning_rate: unknown key; did you mean mstep.learning_rate?"),
        ("serach={alpha: 1}", "serach: unknown key; did you mean search?"),
        ("mstep.lora.rnk=1", "mstep.lora.rnk: unknown key; did you mean mstep.lora.rank?"),
        ("reward.knd=3", "reward.knd: unknown key; did you mean reward.kind?"),
        ("track.zzz=3", "track.zzz: unknown key; known here: kinds, project"),
        ("search.alpha=0", "search.alpha = 0: out of range; allowed: a number > 0"),
        ("search.alpha=-1", "search.alpha = -1: out of range; allowed: a number > 0"),
        ("search.alpha=.inf", "search.alpha = Infinity: out of range; allowed: a number > 0"),
        ("search.gamma=1.5", "search.gamma = 1.5: out of range; allowed: a number > 0 and <= 1"),
        ("search.candidates=0", "search.candidates = 0: out of range; allowed: a whole number >= 1"),
        ("search.candidates=2.5", "search.candidates = 2.5: wrong type; allowed: a whole number >= 1"),
        ("search.candidates=yes", "search.candidates = true: wrong type; allowed: a whole number >= 1"),
        ("search.candidates=", "search.candidates = null: wrong type; allowed: a whole number >= 1"),
        ("search.alpha=small", "search.alpha = small: wrong type; allowed: a number > 0"),
        ("search.eta=0", "search.eta = 0: a search needs a stochastic sampler; allowed: 0 < eta <= 1"),
        ("search.noise=flow_sde", "search.noise = flow_sde: is a rule for flows; allowed: ddim, cps or renoise"),
        ("search.eta=2", "search.eta = 2: out of range; allowed: a number >= 0 and <= 1"),
        ("search.gradient=maybe", "search.gradient = maybe: wrong type; allowed: true or false"),
        ("search.kind=dva", "search.kind = dva: unknown value; allowed: dav, smc, svdd, refine,"),
        (
            "search.anchor=geometric(1)",
            "search.anchor = geometric(1): unknown anchor; "
            "allowed: current, pretrained or geometric(BETA) with 0 < BETA < 1",
        ),
        ("search.alpha.x=3", 'search.alpha = {"x": 3}: wrong type; allowed: a number > 0'),
        ("seed=-1", "seed = -1: out of range; allowed: a whole number >= 0 and < 4294967296"),
        ("search=3", "search = 3: wrong type; allowed: keys kind, candidates, alpha"),
        ("prompts=[]", "prompts = []: at least one is needed; allowed: a list of texts, or the path"),
        ("prompts=[1]", "prompts[0] = 1: wrong type; allowed: a list of texts, or the path of a text file"),
        ("prompts=nofile.txt", "prompts = nofile.txt: no such file; allowed: a list of texts, or the path"),
        ("reward=[]", "reward = []: at least one is needed"),
        ("reward.args=3", "reward.args = 3: wrong type; allowed: names with values"),
        (
            "reward=[{kind: brightness}, {kind: brightness}]",
            'reward = [{"kind": "brightness"}, {"kind": "brightness"}]: two entries are named brightness; '
            "allowed: names that differ (set name)",
        ),
        (
            "roles.search.labels.zone=1",
            "roles.search.labels.zone = 1: wrong type; allowed: names, each with text",
        ),
        (
            "track.kinds=[comet]",
            "track.kinds[0] = comet: unknown value; allowed: a list of (tensorboard, wandb or",
        ),
        ("model.path=???", "model.path = ???: a value is needed"),
        (
            "model.path=${oc.env:DAV_UNSET}",
            "model.path = ${oc.env:DAV_UNSET}: the environment variable DAV_UNSET is",
        ),
        ("model.path=${nothing.here}", "model.path = ${nothing.here}: the reference can't be resolved ("),
        (
            "search.tempering=adaptive(1.5)",
            "search.tempering = adaptive(1.5): unknown tempering; allowed: discount, linear or adaptive(SHARE) with",
        ),
        (
            "roles.search.min_replicas=3",
            "roles.search.min_replicas = 3: more than replicas; allowed: at most 1",
        ),
        (
            "roles.train.min_replicas=1",
            "roles.train.min_replicas: unknown key; did you mean roles.reward.min_replicas?",
        ),
        ("search.alpha", "search.alpha: not an override; allowed: key.sub=value"),
        ("=3", "=3: not an override; allowed: key.sub=value"),
        ("search..alpha=3", "search..alpha=3: not an override; allowed: key.sub=value"),
        ("prompts=[a,", "prompts=[a,: the value is not valid YAML: "),
    ],
)
def test_one_line_per_mistake(recipe: str, override: str, line: str) -> None:
    (found,) = lines(recipe, override)
    assert found.startswith(line)
    assert "\n" not in found


def test_rules_that_span_keys(recipe: str) -> None:
    assert lines(recipe, "search.kind=best_of_n", "search.gradient=true", "mstep.weights=trajectory") == [
        "search.gradient = true: best_of_n uses no gradient; allowed: false, or true with search.kind = dav, smc or "
        "refine"
    ]
    assert lines(recipe, "search.kind=best_of_n", "mstep.weights=trajectory") == [
        "mstep.weights = trajectory: best_of_n keeps the argmax and has no weights; allowed: none"
    ]
    assert lines(recipe, "search.kind=refine", "mstep.weights=trajectory") == [
        "mstep.weights = trajectory: refine chooses among whole samples and has no weights; allowed: none"
    ]
    assert lines(recipe, "search.choice=best", "mstep.weights=trajectory") == [
        "mstep.weights = trajectory: dav keeps the best candidate (search.choice) and has no weights; allowed: none"
    ]
    assert lines(recipe, "search.ratio=mean", "mstep.weights=trajectory") == [
        "mstep.weights = trajectory: dav averages log ratios (search.ratio) and has no weights; allowed: none"
    ]
    assert lines(recipe, "search.kind=none", "search.anchor=pretrained", "mstep.weights=trajectory") == [
        "mstep.weights = trajectory: none samples the current model, not search.anchor = pretrained, and has no "
        "weights; allowed: none"
    ]
    assert lines(recipe, "search.kind=svdd", "search.anchor=pretrained") == [
        "search.anchor = pretrained: search.kind = svdd has no use for it; allowed: current, or search.kind = dav or "
        "smc or refine or best_of_n or none"
    ]
    assert lines(recipe, "search.particles=4") == [
        "search.particles = 4: search.kind = dav has no use for it; allowed: 1, or search.kind = smc"
    ]
    assert lines(recipe, "search.kind=smc", "search.choice=best") == [
        "search.choice = best: search.kind = smc has no use for it; allowed: draw, or search.kind = dav or svdd or "
        "refine"
    ]
    assert lines(recipe, "search.kind=refine", "mstep.candidates=all") == [
        "mstep.candidates = all: refine keeps no candidates; allowed: winner"
    ]
    assert lines(recipe, "search.candidates=1", "mstep.candidates=all") == [
        "mstep.candidates = all: one candidate says nothing; allowed: search.candidates >= 2"
    ]
    assert lines(recipe, "mstep.target=completed") == [
        "mstep.target = completed: is for masked models, not diffusers; allowed: unmasked"
    ]
    assert load(recipe, ["search.kind=none", "search.eta=0"]).config.search.eta == 0


def test_all_mistakes_at_once(recipe: str) -> None:
    found = lines(recipe, "search.alhpa=1", "search.eta=0", "search.gamma=2", "rounds=0", "mstep.kl")
    assert sorted(line.split(":")[0].split(" ")[0] for line in found) == [
        "mstep.kl",
        "rounds",
        "search.alhpa",
        "search.eta",
        "search.gamma",
    ]


def test_missing_keys_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert [line.split(":")[0] for line in lines(str(empty))] == ["model.path", "prompts", "reward.kind"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: [1\nb: 2\n", "bad.yaml:2: not valid YAML: "),
        ("a: 1\n b: 2\n", "bad.yaml:2: not valid YAML: "),
        ("seed: 1\nseed: 2\n", "bad.yaml:2: not valid YAML: found duplicate key seed"),
        ("- 1\n", "bad.yaml: must hold `key: value` pairs"),
        ("seed: ${b\n", "bad.yaml: the reference can't be resolved ("),
    ],
)
def test_broken_yaml_names_file_and_line(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    (found,) = lines(str(path))
    assert found.startswith(f"{tmp_path}/{where}")


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    assert lines("digitz") == [
        f"recipe digitz: no such file; shipped recipes: {', '.join(shipped())}; did you mean digits?"
    ]
    assert lines(str(tmp_path))[0].startswith(f"recipe {tmp_path}: is a folder; allowed: a YAML file, or a shipped")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert lines(str(binary)) == [f"{binary}: can't be read as text: invalid start byte"]


def test_prompts_file_beside_the_recipe_or_here(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "beside.txt").write_text("one\n\n two ${x}\n")
    (here / "local.txt").write_text("three\n")
    (here / "empty.txt").write_text("\n")
    loaded = load(recipe, ["prompts=beside.txt"])
    assert loaded.config.prompts == ("one", "two ${x}")
    assert from_yaml(loaded.yaml, "config.yaml").config == loaded.config  # the prompts are stored, not the path
    assert load(recipe, ["prompts=local.txt"]).config.prompts == ("three",)
    assert lines(recipe, "prompts=empty.txt") == [
        "prompts = empty.txt: the file is empty; allowed: one prompt per line"
    ]


def test_comments_in_a_prompts_file(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# animals\ncat\n  # indented\n\\# one\n\\## two\ndog # not a comment\n\\x\n")
    loaded = load(recipe, ["prompts=p.txt"])
    assert loaded.config.prompts == ("cat", "# one", "## two", "dog # not a comment", "\\x")
    assert from_yaml(loaded.yaml, "config.yaml").config == loaded.config
    (tmp_path / "none.txt").write_text("# nothing\n")
    assert lines(recipe, "prompts=none.txt") == ["prompts = none.txt: the file is empty; allowed: one prompt per line"]
    assert "lines that start with # are comments" in (fields()["prompts"].description or "")


def test_environment_references_are_stored_as_typed(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAV_SECRET", "org/secret")
    loaded = load(recipe, ["model.path=${oc.env:DAV_SECRET}", "reward.args.key=${oc.env:DAV_SECRET}"])
    assert loaded.config.model.path == "org/secret"
    assert loaded.config.reward[0].args == {"key": "org/secret"}
    assert "secret" not in loaded.yaml
    assert from_yaml(loaded.yaml, "config.yaml").config == loaded.config


def test_differing_keys(recipe: str) -> None:
    stored = load(recipe).yaml
    free = ["roles.search.replicas=9", "roles.reward.gpus=1", "track.kinds=[wandb]"]
    assert differing_keys(stored, load(recipe, free).yaml) == []
    older = "".join(line for line in stored.splitlines(keepends=True) if "particles:" not in line)
    assert older != stored and differing_keys(older, stored) == []  # stored by a release that had no such key
    decides = "it decides what a round finds or learns; a new run can start from this one's policy (init.run)"
    assert differing_keys(older, load(recipe, ["search.kind=smc", "search.particles=3"]).yaml) == [
        f"search.kind: was dav, now smc; fixed: {decides}",
        f"search.particles: was 1, now 3; fixed: {decides}",
    ]
    changed = ["search.alpha=1", "prompts=[x]", "reward.args.k=1", "roles.train.replicas=2"]
    assert differing_keys(stored, load(recipe, changed).yaml) == [
        f'prompts: was ["cat", "dog"], now ["x"]; fixed: {decides}',
        f"reward[0].args.k: was not set, now 1; fixed: {decides}",
        f"search.alpha: was 0.005, now 1.0; fixed: {decides}",
        "roles.train.replicas: was 1, now 2; fixed: it decides the order of sums, and so the last bits of every result",
        f"reward[0].args: was {{}}, now not set; fixed: {decides}",
    ]


def test_golden_scores_and_tolerances_change_no_result(recipe: str) -> None:
    plain = load(recipe)
    given = load(recipe, ["reward={kind: brightness, golden: /some/file.npz, tolerance: {A100: 0.01}}"])
    assert given.config.reward[0].tolerance == {"A100": 0.01} and plain.config.reward[0].tolerance == {}
    assert given.config.identity() == plain.config.identity()
    assert differing_keys(plain.yaml, given.yaml) == []
    (line,) = lines(recipe, "reward={kind: brightness, tolerance: {cpu: -1}}")
    assert line.startswith("reward.tolerance.cpu = -1: ")


def test_a_reward_may_have_a_role_of_its_own(recipe: str) -> None:
    two = "reward=[{kind: brightness}, {kind: jpeg_compressibility, role: {gpus: 0.5, labels: {role: reward}}}]"
    config = load(recipe, [two, "roles.reward.replicas=3", "roles.reward.cpus=2"]).config
    shared, own = (config.reward_role(reward) for reward in config.reward)
    assert (shared.replicas, shared.cpus, shared.gpus) == (3, 2, 0)
    assert (own.replicas, own.cpus, own.gpus, own.labels) == (3, 2, 0.5, {"role": "reward"})
    again = from_yaml(load(recipe, [two]).yaml, "somewhere/config.yaml").config
    assert again.reward_role(again.reward[1]).gpus == 0.5

    plain = load(recipe, ["reward=[{kind: brightness}, {kind: jpeg_compressibility}]"])
    assert load(recipe, [two]).config.identity() == plain.config.identity()  # where it runs changes nothing
    assert differing_keys(plain.yaml, load(recipe, [two]).yaml) == []
    merged = two.replace("gpus: 0.5", "merge: true")
    assert load(recipe, [merged]).config.identity() != plain.config.identity()
    assert lines(recipe, two.replace("gpus: 0.5", "min_replicas: 2")) == [
        "reward[1].role.min_replicas = 2: more than replicas; allowed: at most 1"
    ]
    assert lines(recipe, "roles.reward={pip: [x], container: y}") == [
        "roles.reward.pip and container: two environments; allowed: one of python, pip, container"
    ]


@pytest.mark.parametrize("revision", ["0012345", "123", "12e45678", "main", "1.0"])
def test_a_revision_is_a_text_also_where_it_looks_like_a_number(revision: str) -> None:
    assert load("sd15", [f"model.revision={revision}"]).config.model.revision == revision


def test_a_revision_of_digits_in_a_file_is_a_text(tmp_path: Path) -> None:
    sections = "model: {path: org/name, revision: 20240101}\nprompts: [a]\nreward: {kind: brightness}\n"
    (tmp_path / "mine.yaml").write_text(sections)
    assert load(str(tmp_path / "mine.yaml")).config.model.revision == "20240101"


@pytest.mark.parametrize("prompts", ["", "prompts: null\n"], ids=["no key", "null"])
def test_a_model_without_prompts_may_lie_beside_the_recipe(tmp_path: Path, prompts: str) -> None:
    """Wherever the command is given."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    file = tmp_path / "my.yaml"
    file.write_text("model: {path: pipeline}\nreward: {kind: brightness}\n" + prompts)
    assert load(str(file)).config.prompts == load(str(file)).as_typed.prompts == ("",)
