"""Costs of design section 2, and what the roles occupy."""

from __future__ import annotations

import pytest

from dav_ray.config.plan import costs, crowded, local_cpus, most_at_once, plan, price_per_hour, render
from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config


def config(reward: object = None, roles: dict | None = None, mstep: dict | None = None, **search: object) -> Config:
    return Config.model_validate(
        {
            "model": {"path": "x/y"},
            "prompts": ["a"],
            "reward": reward or {"kind": "jpeg_compressibility"},
            "search": search,
            "mstep": mstep or {},
            "roles": roles or {},
        }
    )


@pytest.mark.parametrize(
    ("search", "evaluations", "reward_calls"),
    [
        ({"steps": 50, "candidates": 16}, 785, 800),
        ({"steps": 50, "candidates": 4, "gradient": True}, 246, 250),
        ({"steps": 50, "candidates": 1}, 50, 50),
        ({"kind": "best_of_n", "steps": 20, "candidates": 4}, 80, 4),
        ({"kind": "smc", "steps": 50, "candidates": 1, "particles": 4}, 200, 200),
        ({"kind": "svdd", "steps": 50, "candidates": 16}, 785, 800),
        ({"kind": "none", "steps": 20}, 20, 1),
    ],
)
def test_evaluations_per_accepted_sample(search: dict, evaluations: int, reward_calls: int) -> None:
    planned = plan(config(**search))
    assert (planned.evaluations, planned.reward_calls) == (evaluations, reward_calls)
    assert planned.backward_evaluations == (50 if search.get("gradient") else 0)


@pytest.mark.parametrize(
    ("search", "reference"),
    [
        ({"anchor": "current"}, 0),
        ({"anchor": "pretrained"}, 20),
        ({"anchor": "geometric(0.5)"}, 20),
        ({"anchor": "pretrained", "kind": "best_of_n"}, 0),
        ({"anchor": "pretrained", "kind": "smc", "particles": 3}, 60),
    ],
)
def test_only_a_tilted_reference_costs_evaluations(search: dict, reference: int) -> None:
    assert plan(config(steps=20, **search)).reference_evaluations == reference


def test_a_round() -> None:
    planned = plan(config(steps=20, trajectories=64, chunk=30, mstep={"batch_size": 256, "epochs": 2}))
    # groups of 30, 30 and 4 rows: 3 + 3 + 1 optimizer steps; the second epoch takes 5
    assert (planned.chunks, planned.transitions, planned.optimizer_steps) == (3, 1280, 12)
    assert planned.network_passes == 2
    assert plan(config(guidance_scale=1)).network_passes == 1


def test_roles_are_counted_for_each_reward_and_fit_the_embedded_ray() -> None:
    rewards = [{"kind": "jpeg_compressibility"}, {"kind": "brightness"}]
    roles = {
        "search": {"replicas": 2, "cpus": 0.5, "gpus": 0.25},
        "reward": {"cpus": 0.25},
        "train": {"cpus": 2},
    }
    made = config(reward=rewards, roles=roles)
    planned = plan(made)
    assert [need.replicas for need in planned.roles] == [2, 2, 1]
    assert (planned.cpus, planned.gpus) == (3.5, 0.5)
    assert local_cpus(made, cores=2) == 5
    assert local_cpus(made, cores=64) == 64


def test_rendered_plan_names_what_matters() -> None:
    made = config(steps=50, candidates=4, gradient=True, anchor="pretrained", trajectories=10, chunk=5)
    text = render(made, plan(made))
    assert "at most 246, 50 of them with backward, and 50 of the pretrained model" in text
    assert "at most 2,960" in text
    assert "10 accepted samples in 2 chunks" in text


def test_rounds_that_start_from_the_last_one_cost_less() -> None:
    """T = 8, s = 2, M = 4, R = 3: 1 + 7 M once, and R (1 + M) in every round."""
    refine = {"kind": "refine", "steps": 8, "candidates": 4, "repeats": 3, "depth": 0.25, "trajectories": 10}
    made = config(**refine, anchor="pretrained")
    planned, text = plan(made), render(made, plan(made))
    assert planned.later is not None

    assert (planned.evaluations, planned.reference_evaluations, planned.reward_calls) == (29 + 15, 8 + 6, 56)
    assert (planned.later.evaluations, planned.later.reference_evaluations, planned.later.reward_calls) == (15, 6, 24)
    assert "44, and 14 of the pretrained model (2 network passes each); later rounds 15" in text
    assert "580; later rounds 210" in text and "56 for each of 1 rewards; later rounds 24" in text
    assert plan(config(**refine, warm_start="off")).later is None
    assert plan(made.model_copy(update={"rounds": 1})).later is None and plan(config()).later is None


def masked(prompts: list[str], **search: object) -> Config:
    model = {"kind": "masked", "path": "shipped:dna"}
    return Config.model_validate(
        {"model": model, "prompts": prompts, "reward": {"kind": "gc_content"}, "search": search}
    )


def test_a_masked_model_takes_at_most_what_design_section_2_counts() -> None:
    """T = 128, M = 10: 1271 if no two candidates were alike; how many are is known only afterwards."""
    made = masked([""], steps=128, candidates=10, trajectories=10)
    planned, text = plan(made), render(made, plan(made))

    assert (planned.evaluations, planned.reward_calls, planned.network_passes) == (1271, 1280, 1)
    assert "at most 1271 (1 network passes each)" in text and "at most 12,710" in text
    assert plan(masked(["", "class=1"], guidance_scale=2)).network_passes == 2
    assert plan(masked(["class=1"], guidance_scale=1)).network_passes == 1
    assert plan(masked(["fixed=0:A"], guidance_scale=2)).network_passes == 1


def test_a_run_is_the_same_under_a_release_with_more_keys() -> None:
    """What is at its default counts as if it were not there, also where all of a section is; anything else does not."""
    base = config(steps=20)
    for same in (
        config(steps=20, particles=1),
        config(steps=20, roles={"search": {"cpus": 2}}),
        config(steps=20, eta=1),
    ):
        assert same.identity() == base.identity()
    for other in (config(steps=21), config(steps=20, choice="best"), config(steps=20, mstep={"kl": 0.0})):
        assert other.identity() != base.identity()


def test_roles_that_take_turns_are_not_added_up() -> None:
    shared = {"search": {"gpus": 0.9, "idle_s": 0}, "reward": {"gpus": 0.1}, "train": {"gpus": 0.9, "cpus": 3}}
    assert most_at_once(config(roles=shared)) == (5, pytest.approx(1.9))
    shared["train"]["lifetime"] = "round"
    assert most_at_once(config(roles=shared)) == (4, pytest.approx(1.0))
    del shared["search"]["idle_s"]  # stays while the ranks train
    assert most_at_once(config(roles=shared)) == (5, pytest.approx(1.9))


def test_a_round_costs_what_its_roles_do() -> None:
    """4 search workers at 2 an hour, a rank at 3, two rewards with 2 workers each at .5, one of them at 1."""
    roles = {
        "search": {"replicas": 4, "price": 2.0, "idle_s": 0},
        "reward": {"replicas": 2, "price": 0.5},
        "train": {"price": 3.0},
    }
    rewards = [{"kind": "jpeg_compressibility"}, {"kind": "brightness", "role": {"price": 1.0}}]
    made = config(reward=rewards, roles=roles, trajectories=100)
    assert price_per_hour(made) == 4 * 2 + 2 * 0.5 + 2 * 1 + 3
    assert costs(made, 1800) == {"cost/round": pytest.approx(7.0), "cost/per_sample": pytest.approx(0.07)}
    assert "price" in render(made, plan(made)) and "14 per hour" in render(made, plan(made))
    roles["train"] |= {"lifetime": "round"}  # on the places of the search
    assert price_per_hour(config(reward=rewards, roles=roles)) == 11

    free = config()
    assert costs(free, 1800) == {} and "per hour" not in render(free, plan(free))
    assert config(roles={"search": {"price": 2.0}}).identity() == free.identity()


def test_stable_diffusion_on_one_gpu() -> None:
    made = load("sd15_one_gpu").config
    cpus, gpus = most_at_once(made)
    assert cpus <= 8 and gpus == pytest.approx(1.0)
    assert crowded(made, cores=4) == ""
    assert "3 CPUs, 1 GPUs at a time, as search and training take turns; 1 CPU more" in render(made, plan(made))
    assert (made.search.precision, made.mstep.precision, made.model.dtype) == ("bfloat16",) * 3
    kept = 2.3 * made.mstep.micro_batch + 2.2 + 2  # GB: for the backward pass, weights, CUDA and workspace
    assert kept < 0.9 * 24


def test_fewer_cores_than_the_recipe_counts_on_are_named() -> None:
    made = config()  # search, reward, train: a core each
    assert crowded(made, cores=4) == ""
    assert crowded(made, cores=2) == "2 CPUs here, the recipe counts on 4: everything runs, slower"
    assert crowded(made, cores=1) == "1 CPU here, the recipe counts on 4: everything runs, slower"
    assert crowded(load("digits").config, cores=2) == ""


def test_half_precision_evaluates_parents_again_for_an_anchor() -> None:
    """In float32, as the pretrained model; 20 steps of 4 candidates."""
    for settings, network, reference in (
        ([], 77, 0),
        (["model.dtype=bfloat16"], 77, 0),
        (["search.anchor=pretrained"], 77, 20),
        (["search.anchor=pretrained", "model.dtype=float16"], 97, 20),
        (["search.anchor=geometric(0.5)", "search.precision=bfloat16"], 97, 20),
    ):
        planned = plan(load("digits", settings).config)
        assert (planned.evaluations, planned.reference_evaluations) == (network, reference), settings
