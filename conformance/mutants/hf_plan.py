"""Faults in what ``kiv plan`` and ``kiv ask`` foresee: shapes, bytes, times, what fits, what was measured."""

from __future__ import annotations

from .source import Fault

TESTS = "packages/kiv-hf/tests/test_cli_"
BYTES, WEIGHED, TIMES, PLAN, ASKED, MEASURED = (
    f"{TESTS}plan{name}.py::test_" for name in ("_bytes", "_weights", "_times", "", "_models", "_measured")
)

KINDS = f"{BYTES}every_kind_of_layer_holds_what_is_predicted"
FILLED = f"{BYTES}windows_and_pages_of_every_size"
SPILLED = f"{BYTES}what_goes_to_disk_is_predicted_within_a_page"
WEIGHTS = f"{WEIGHED}weights_are_counted_once_and_by_kind"
STEP = f"{TIMES}a_step_is_counted_by_hand"
PROMPT = f"{TIMES}a_prompt_takes_what_takes_longest"
SECONDS = f"{TIMES}seconds_are_bytes_over_bandwidth"
DISK = f"{PLAN}what_ram_cannot_hold_goes_to_disk"
REMEDIES = f"{PLAN}every_remedy_is_one"
CHUNKS = f"{PLAN}chunks_shrink_where_room_is_scarce"
ANOTHER = f"{MEASURED}another_plan_is_not_what_was_measured"

# What is wrong, where, what the source says and what instead, and the test that must fail.
_FAULTS = (
    ("a sliding layer counts the whole text", "sizes.layers:LayerSizes.kept_tokens", "min(tokens, self.window)",
     "tokens", f"{TESTS}parts.py::test_sliding_layers_count_their_window_only"),
    ("a window counts the next token", "sizes.layers:_window", "max(window - 1, 0)", "window", KINDS),
    ("latents are kept as a plain cache has them", "sizes.layers:_kept_by_kiv", "key + value, key", "key, value",
     f"{KINDS}[latent]"),
    ("a bias of positions has a channel too many", "sizes.layers:_kept_by_kiv", "longer.shape[-1] - 1",
     "longer.shape[-1]", f"{KINDS}[position bias]"),
    ("states in float32 count as the model's dtype", "sizes.layers:_states", "state.dtype == DTYPE", "True",
     f"{BYTES}states_are_counted_in_the_dtype_that_they_have"),
    ("states beside KIV layers are not counted", "sizes.model:ModelSizes.others_bytes", "states + sum", "0 + sum",
     f"{KINDS}[both in one]"),
    ("latents are read from fields", "sizes.layers:layer_sizes", "if latent:", "if False:",
     f"{BYTES}where_fields_do_not_tell_it_is_refused"),
    ("all experts are read", "sizes.weights:_expert_share", "min(1.0, chosen / experts)", "1.0",
     f"{WEIGHED}of_experts_a_step_reads_those_that_a_token_is_sent_to"),
    ("a tower for images is read", "sizes.weights:count_weights", "embedding or not ran", "embedding",
     f"{WEIGHED}a_tower_for_images_is_held_and_not_read"),
    ("an embedding that is the head too is not read", "sizes.weights:count_weights", "one is not head", "one is head",
     WEIGHTS),
    ("shared weights are counted twice", "sizes.weights:count_weights", "if id(weight) in seen", "if False", WEIGHTS),
    ("what is not converted is quantised", "sizes.weights:count_weights",
     "quantised and not any(part in path for part in skipped)", "quantised",
     f"{WEIGHED}what_is_not_converted_stays_dense"),
    ("groups have no scales", "sizes.weights:saved_bits", "if group > 0 else 0", "if False else 0",
     f"{WEIGHED}bits_of_quantised_weights"),
    ("tables of pages take nothing", "sizes.stores:held", "sum(ram + TABLE_BYTES for", "sum(ram for", FILLED),
    ("every layer has buffers of its own", "sizes.stores:held", "buffers=max((step_bytes(shape, config, tuning) "
     "for shape in shapes), default=0)", "buffers=sum(step_bytes(shape, config, tuning) for shape in shapes)", FILLED),
    ("what others hold more on the way is not counted", "sizes.stores:held",
     "sum(kept - now for now, kept, _ in windows) + ", "",
     f"{BYTES}while_one_layer_reads_others_hold_more_than_at_the_end"),
    ("a long text is as any other of its chunks", "sizes.stores:_window", "math.lcm(config.page_tokens, chunk_tokens)",
     "chunk_tokens", FILLED),
    ("rows are kept under a limit of the disk", "sizes.stores:_spilled", "config.disk_bytes is None", "True", SPILLED),
    ("every layer keeps an eighth of RAM in rows", "sizes.stores:_spilled", "// tuning.row_share - rows",
     "// tuning.row_share", SPILLED),
    ("rows take no room from pages", "sizes.stores:_spilled", "over = notes + rows +", "over = notes +", SPILLED),
    ("cold pages count on the device", "estimate:check_memory", 'type == "cpu"', 'type != ""',
     f"{TESTS}parts.py::test_on_a_device_cold_pages_count_in_ram"),
    ("launches take no time in a graph", "plan.times:step_time", "busy += moved.launches * GRAPH_S", "pass", SECONDS),
    ("Python waits for the device", "plan.times:step_time", "max(busy, moved.calls * EAGER_S)",
     "busy + moved.calls * EAGER_S", SECONDS),
    ("KIV's launches come on top of those they replace", "plan.times:_read",
     "count - ATTENTION_LAUNCHES", "count", STEP),
    ("Python launches each of KIV's kernels", "plan.times:_read", "(KIV_LAUNCHES, KIV_CALLS)", "(KIV_LAUNCHES,) * 2",
     STEP),
    ("the tail's look at the estimates is free", "plan.times:layer_step", "3 * estimates", "2 * estimates", STEP),
    ("widening is as frequent in short contexts", "plan.times:layer_step",
     "min(1.0, work.tokens / WIDENED_TOKENS)", "1.0", STEP),
    ("short rows cross PCIe as fast as long ones", "plan.times:_read", "scattered * HOST_ROW_BYTES", "0",
     f"{TIMES}short_rows_take_as_long_as_a_burst"),
    ("exact mode hits rows on the device", "plan.times:layer_step",
     "work.kept_rows and cold <= config.candidate_tokens", "work.kept_rows",
     f"{TIMES}exact_mode_reads_everything_over_pcie"),
    ("rows that are missed come from the device too", "plan.times:_read", "n * size * hit for", "n * size for", STEP),
    ("all values are kept", "plan.times:layer_step", "config.retrieve_tokens or config.candidate_tokens",
     "config.candidate_tokens", f"{TIMES}few_cold_tokens_are_all_read"),
    ("values are kept as keys are", "plan.times:layer_step", "(KEY_HITS, VALUE_HITS)", "(KEY_HITS, KEY_HITS)", STEP),
    ("all cold tokens are on disk", "plan.times:_read", "disk * work.disk_share", "disk", STEP),
    ("a chunk's own keys stay on the device", "plan.times:chunk_s", "host = token_bytes * (cold + n)",
     "host = token_bytes * cold", PROMPT),
    ("a query does not see itself", "plan.times:sum_of_seen", "n * (n + 1) // 2", "n * (n - 1) // 2",
     f"{TIMES}pairs_that_see_each_other"),
    ("a window is that of the first query", "plan.times:sum_of_seen", "(done + n - window) * window", "0",
     f"{TIMES}pairs_that_see_each_other"),
    ("the smallest chunk is taken", "plan.layout:lay_out", "with_rows[0]", "with_rows[-1]", CHUNKS),
    ("what has no room for rows does not fit", "plan.layout:lay_out", "replace(one, rows=0) for", "one for", CHUNKS),
    ("weights take no RAM on their way", "plan.layout:_layout", "if weights > available", "if False",
     f"{PLAN}weights_pass_through_ram"),
    ("a disk is never too small", "plan.layout:_layout", "found.pages_on_disk > wish.disk", "False", DISK),
    ("the limit of the disk is not set", "plan.layout:_layout", "disk_bytes=wish.disk", "disk_bytes=None", DISK),
    ("the budget is all that the weights leave", "plan.layout:_budgeted", " - layout.work", "",
     f"{PLAN}the_command_has_the_knobs"),
    ("a need is rounded down", "plan.remedies:_upwards", "-(-count // unit)", "count // unit", REMEDIES),
    ("changes are not tried together", "plan.remedies:remedies", "said.append(what)", "break", REMEDIES),
    ("the longest context is one too short", "plan.remedies:longest_context", "return low *", "return (low - 1) *",
     REMEDIES),
    ("an unknown width is dense", "plan.run:_bits", "raise refuse(", "return None\n        raise refuse(",
     f"{ASKED}quantised_weights_are_as_wide_as_they_are_saved"),
    ("what does not fit is well", "plan.run:plan", "return not layout.reasons", "return True",
     f"{PLAN}what_does_not_fit_says_why_and_what_would"),
    ("models with images are refused", "models.source:load_config", "elif text_only and type", "elif type",
     f"{ASKED}a_model_with_images_is_for_python"),
    ("the command forgets that all is attended", "plan.outcome:command", 'words.append("--exact")', "pass",
     f"{PLAN}knobs_that_differ_are_told"),
    ("a quick run counts as measured", "plan.measured:_read", 'if run["quick"]', "if False",
     f"{MEASURED}what_is_no_run_on_a_gpu_is_refused"),
    ("a step may take no time", "plan.measured:_measured", "if not (step_s > 0 and chunk_s > 0)", "if False",
     f"{MEASURED}what_is_no_run_on_a_gpu_is_refused"),
    ("figures of dense weights stand beside quantised ones", "plan.timetable:_is_of", "wish.bits is None", "True",
     ANOTHER),
    ("figures of another context stand beside a plan", "plan.timetable:_is_of", "one.tokens == wish.tokens", "True",
     ANOTHER),
    ("figures of another model stand beside a plan", "plan.timetable:_is_of", "one.geometry == geometry_of(sizes)",
     "True", f"{MEASURED}another_model_is_not_what_was_measured"),
    ("figures of a card whose name begins alike count", "plan.timetable:timetable", "one.card in card.cuda_names",
     "card.name in one.card", f"{MEASURED}a_card_that_is_not_predicted_has_measured_figures_alone"),
)  # fmt: skip

FAULTS = [Fault(name, f"kiv_hf.cli.{where}", old, new, (test,)) for name, where, old, new, test in _FAULTS]
