"""Where the modules and names of 0.1.0 are now: an import of an old path fails with a line that names the new one.

The tables stay for one release.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# modules and folders: the old path and the new one, below dav_ray
_TABLE = """
accepted runtime.accepted
batches config.batches
buffer run_dir.shards
checkpoint diffusion.weight_files
choice_hints runtime.watch.choice_hints
cli_checks cli.checks
cli_config cli.recipes
cli_errors cli.failures
cli_options cli.options
cli_pretrain cli.pretrain
cli_try_reward cli.try_reward
connect runtime.cluster.connect
device diffusion.device
differences config.recipe.differences
diffusion.categorical diffusion.masked.kernel
diffusion.condition diffusion.masked.condition
diffusion.dilated_cnn diffusion.masked.dilated_cnn
diffusion.elbo diffusion.masked.elbo
diffusion.families config.build
diffusion.masked_files diffusion.masked.files
diffusion.stable_diffusion diffusion.pipelines.stable_diffusion
diffusion.stable_diffusion_files diffusion.pipelines.files
dispatch runtime.search.dispatch
doctor runtime.doctor
draining runtime.cluster.draining
driver runtime.driver
evaluate evaluation.measure
evaluate_again runtime.evaluate_again
failures runtime.cluster.failures
fits runtime.train.job
fleet runtime.reward.fleet
fresh runtime.inference
gather runtime.search.dispatch
going_on runtime.resume
init_options config.sections.init
initial runtime.initial_policy
interrupt runtime.interrupt
key_table config.keys.table
keys config.keys.describe
lease runtime.lease
lives runtime.search.process
local_files run_dir.storage.local_files
manifest run_dir.manifest
manifest_record run_dir.manifest_record
masked_model config.families.masked_checks
may_change config.identity
measured_alpha runtime.measured_alpha
model_folder config.families
module_path registry
mstep.mailbox runtime.train.mailbox
mstep.train runtime.train
mstep.troubles runtime.train.troubles
nodes runtime.cluster.nodes
noise diffusion.noise
notices runtime.cluster.notices
object_storage run_dir.storage.object_store
own_alphabet config.families.alphabet
own_code config.checks.user_code
own_modules config.recipe.user_modules
own_recipe config.recipe.template
own_targets registry
parsing strict
placement runtime.cluster.placement
placement_checks config.checks.roles
places runtime.cluster.nodes
plan config.plan
policy run_dir.policy
policy_files run_dir.policy_files
preflight config.checks.preflight
pretrain diffusion.masked.pretrain
pretrain_job runtime.pretrain.job
pretrain_options runtime.pretrain.options
probe_tasks runtime.probe.settle
probing runtime.probe.probing
problems testing
progress runtime.watch.progress
prometheus runtime.watch.prometheus
prompts_file config.recipe.prompts_file
quarantine run_dir.quarantine
ray_addresses config.checks.ray_addresses
ray_data runtime.train.datasets
recipe config.recipe.load
recipe_comments config.recipe.comments
recipe_paths config.recipe.paths
recipe_schema config.keys.json_schema
recipes assets.recipes
report_charts report.charts
report_data report.data
report_logos report.logos
report_sequences report.sequences
report_sizes report.sizes
retention run_dir.retention
reward_checks config.checks.rewards
reward_columns run_dir.reward_columns
rewards.actor runtime.reward.replica
rewards.crew_actor runtime.reward.replicas
rewards.fleet_actor runtime.reward.router
rewards.options config.sections.reward
rewards.pool runtime.reward.scaling
rewards.queue runtime.reward.batching
rewards.spec runtime.reward.spec
roles config.sections.roles
round_reports runtime.watch.round_reports
rounds runtime.rounds
run_files run_dir
same_run config.recipe.same_run
same_setting config.identity
sample runtime.sample
samples evaluation
schedule runtime.search.schedule
search.actor runtime.search.worker
search.choices search.weighting.choices
search.front search.states
search.last_round runtime.search.starts
search.none search.plain
search.parts search.turns
search.reuse search.states
search.resampling search.weighting.resampling
search.skipping search.kinds
search.temperature search.weighting.temperature
search.tempering search.weighting.tempering
search.warm search.warm_start
search.weights search.weighting.weights
secrets redact
section strict
sequences diffusion.masked.alphabet
session runtime.session
shown_samples evaluation.shown_samples
storage run_dir.storage
summary report.table
tasks runtime.cluster.placement
template runtime.template
tracebacks run_dir.tracebacks
track runtime.watch.trackers
tree config.recipe.typed_yaml
try_checks cli.trial.checks
try_gradient cli.trial.gradient
try_reward cli.trial.trial
try_samples cli.trial.samples
which_policy config.which_policy
workers runtime.search.workers
"""
MODULES: dict[str, str] = dict((old, new) for old, new in map(str.split, _TABLE.strip().splitlines()))
# names that a module or folder of today had in 0.1.0: the old path, where they are, and how they are called
_NAMES = """
cli cli.app MOST_SAMPLES doctor evaluate main report run sample
config config.schema Config Retain Track
config config.sections.evaluation Evaluate
config config.sections.model Model
diffusion.gaussian diffusion.pipelines.ddim DDIMSchedule
mstep.options config.schema LORA_TARGETS=Config.lora_targets
report report.page CRISP_BELOW Cell Grid GridRow HeadlineRow MAX_GRID_ROWS REPORT TEMPLATE headline number render
report report.page reward_rise sample_grid write_report
rewards.registry rewards.registry BUILTIN=REWARDS.builtin FILES=fact SEQUENCES=fact
search.base config.build strategy
search.base diffusion.sampling Observer ancestral
"""
NAMES: dict[str, dict[str, str]] = {}  # the old path -> the old name -> the new path, name included
for _old, _new, *_names in map(str.split, _NAMES.strip().splitlines()):
    for _name, _, _now in (one.partition("=") for one in _names):
        NAMES.setdefault(_old, {})[_name] = f"{_new}.{_now or _name}"


class Moved:
    """The last finder asked for a module, when no other knows it. It has no base class: importing that takes longer
    than all else of `import dav_ray`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for all but old paths: ModuleNotFoundError names the new one."""
        top, _, old = fullname.partition(".")
        if top == "dav_ray" and old in MODULES:
            raise ModuleNotFoundError(_line(old, MODULES[old]), name=fullname)
        return None


def install() -> None:
    """Let imports of old paths fail with a line that says where they are."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())


def names_of(module: str) -> Callable[[str], Any]:
    """`__getattr__` of a module or package of today: ImportError for the names that it had. module: below dav_ray."""

    def missing(name: str) -> Any:
        if name in NAMES[module]:
            raise ImportError(_line(f"{module}.{name}", NAMES[module][name]))
        raise AttributeError(f"module 'dav_ray.{module}' has no attribute {name!r}")

    return missing


def _line(old: str, new: str) -> str:
    return f"dav_ray.{old} has moved: use dav_ray.{new}"
