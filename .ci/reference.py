"""A hook of mkdocs: the README as the front page, a page a topic from docstrings, and the order of all pages.

`PAGES` is the one list of public names. `tests/test_examples.py` runs the example of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
# The theme stops at 61rem, where a line of code of 112 letters does not fit beside two columns of contents.
WIDE = ".md-grid { max-width: 84rem; }\n"

# Title of a page, the modules on it, and what is public in each, in the order of the page.
PAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "Models": {
        "oblique_clip.checkpoint": ("load", "Loaded", "save_model", "config_of", "data_of", "fingerprint"),
        "oblique_clip.model": ("create_model", "DualEncoder", "preprocess_of", "tokenizer_of"),
        "oblique_clip.temperature": ("make_temperature", "LearnedTemperature", "ScheduledTemperature"),
        "oblique_clip.tokenizer": ("get_tokenizer", "TinyTokenizer", "build_tiny_vocabulary", "cut_to_longest"),
        "oblique_clip.weights_file": ("read_state_dict",),
        "oblique_clip.errors": ("UserError",),
        "oblique_clip.files": ("write_whole",),
    },
    "Settings": {
        "oblique_clip.config": (
            "model_config", "ModelConfig", "Architecture", "TemperatureConfig", "TrainConfig", "DataConfig",
            "LossConfig", "OptimConfig", "to_json", "from_json", "write_json", "read_run_config", "check_ranges",
        ),
    },
    "Topologies": {
        "oblique_clip.topology": (
            "parse_topology", "Topology", "ObliqueTopology", "SphereTopology", "EuclideanTopology", "LorentzTopology",
        ),
        "oblique_clip.manifold": ("Oblique", "normalize_rows", "row_angle", "drift_of"),
    },
    "Training": {
        "oblique_clip.loss": ("info_nce", "sigmoid_loss"),
        "oblique_clip.train": ("train",),
        "oblique_clip.loop": ("similarity_figures", "steps_between"),
        "oblique_clip.start": ("changed", "start_weights"),
        "oblique_clip.logs": ("Log", "loggers_of"),
        "oblique_clip.step": ("train_step", "Towers", "nested_loss"),
        "oblique_clip.optim": ("Optimizer", "decay_groups", "is_decayed"),
        "oblique_clip.state": ("State", "reseed"),
        "oblique_clip.resume": ("check_same", "differences", "place_to_go_on"),
        "oblique_clip.health": (
            "BadSteps", "collapsed", "spheres", "clamped", "by_chance", "by_guess", "settle_points",
        ),
        "oblique_clip.distill": ("open_teacher", "Teacher", "SoftTargets", "divergence"),
    },
    "Many processes": {
        "oblique_clip.distributed": (
            "joined", "parallel", "clip_gradients", "whole", "placed",
        ),
        "oblique_clip.peers": ("Peers", "everyone_says"),
        "oblique_clip.plan": ("plan", "PlanConfig", "count_parameters", "shown"),
    },
    "Questions": {
        "oblique_clip.sweep.question": (
            "Question", "Arm", "Finding", "varied", "open_question", "shipped_questions", "of_signs", "of_tests",
        ),
        "oblique_clip.sweep.statistics": ("Interval", "t_interval", "paired", "over_classes"),
        "oblique_clip.evaluate.judge": ("judge",),
    },
    "Towers": {
        "oblique_clip.towers": (
            "make_image_tower", "ImageTower", "TextTower", "OpenClipImageTower", "OpenClipTextTower", "Tower",
            "TokenProjection", "make_class_tokens",
        ),
        "oblique_clip.convnet": ("ConvTower",),
        "oblique_clip.attention": ("token_attention", "token_overlap", "rolled_out"),
        "oblique_clip.explain": ("explain", "ExplainConfig", "draw_attention", "sphere_shares"),
    },
    "Evaluation": {
        "oblique_clip.evaluate.zeroshot": (
            "classify", "calibrate", "build_classifier", "classification", "class_ranks", "rank_figures",
        ),
        "oblique_clip.evaluate.retrieval": ("retrieval", "best_ranks", "group_matches"),
        "oblique_clip.evaluate.calibration": (
            "calibration", "confidences", "reliability", "calibration_error", "fit_temperature", "draw_reliability",
        ),
        "oblique_clip.evaluate.templates": ("prompts_of", "read_templates", "read_descriptions"),
        "oblique_clip.evaluate.encode": ("encode_images", "encode_texts", "evaluating"),
        "oblique_clip.evaluate.floors": ("thumbnails", "pixel_neighbour"),
        "oblique_clip.evaluate.names": ("read_class_names", "imagenet_names", "rename"),
        "oblique_clip.evaluate.pictures": ("open_pictures",),
        "oblique_clip.evaluate.run": ("evaluate", "EvaluateConfig", "evaluate_classes", "settings_of"),
    },
    "Reports": {
        "oblique_clip.columns": ("Column", "value_at"),
        "oblique_clip.report": ("report", "ReportConfig", "named"),
        "oblique_clip.page.write": ("write_page",),
        "oblique_clip.page.family": ("Seen",),
        "oblique_clip.page.examples": ("draw_examples",),
        "oblique_clip.page.confusion": ("confusion",),
        "oblique_clip.page.spread": ("spread",),
        "oblique_clip.page.map": ("draw_map",),
        "oblique_clip.page.runs": ("runs_grid",),
        "oblique_clip.page.curves": ("thinned",),
        "oblique_clip.page.render": ("render",),
    },
    "Few shots": {
        "oblique_clip.adapt": (
            "refine_prototypes", "linear_probe", "LinearProbe", "tip_adapter", "TipAdapter", "accuracies",
        ),
    },
    "Embedding and search": {
        "oblique_clip.embed": ("embed", "EmbedConfig", "to_vectors", "to_points"),
        "oblique_clip.search": (
            "search", "SearchConfig", "read_stored", "Stored", "encode_queries", "nearest", "build_index",
            "nearest_by_index", "recall",
        ),
    },
    "Exploring": {
        "oblique_clip.explore.summary": ("summarise",),
        "oblique_clip.explore.geometry": (
            "alignment", "uniformity", "uniformity_floor", "similarities", "similarity_histogram", "equilibrium_gap",
            "modality_gap", "centroid_distance", "close_gap", "hubness", "occurrences", "neighbourhood_overlap",
        ),
        "oblique_clip.explore.spheres": (
            "effective_rank", "effective_ranks", "spectra", "variance_explained", "uniformity_by_sphere",
            "sphere_faults", "score_shares", "cka_between_spheres", "votes",
        ),
        "oblique_clip.explore.dimension": ("intrinsic_dimension", "two_nn", "mle_dimension"),
        "oblique_clip.explore.homology": (
            "persistence", "Persistence", "landmarks", "betti_curve", "persistence_entropy", "bottleneck",
            "wasserstein",
        ),
        "oblique_clip.explore.compare": ("linear_cka", "procrustes", "rank_correlation"),
        "oblique_clip.draw.softmax": ("draw_softmax",),
        "oblique_clip.draw.spheres": ("draw_circles", "draw_spheres", "spheres_figure"),
        "oblique_clip.draw.places": ("draw_places", "places_figure"),
        "oblique_clip.draw.similarities": ("draw_similarities", "draw_similarity_curves"),
        "oblique_clip.draw.homology": ("draw_persistence",),
        "oblique_clip.draw.votes": ("draw_votes",),
        "oblique_clip.draw.way": ("draw_way",),
        "oblique_clip.draw.against": ("draw_scales", "draw_sizes"),
        "oblique_clip.explore.paths": ("interpolate", "traverse", "root", "swap_sphere"),
        "oblique_clip.explore.points": ("exact", "metric_of", "distances", "neighbours"),
    },
    "Export": {
        "oblique_clip.export": ("export", "ExportConfig", "describe_use", "export_image", "export_text"),
    },
    "Other libraries": {
        "oblique_clip.interop.open_clip": ("load_open_clip", "from_open_clip", "to_open_clip", "OpenClipModel"),
        "oblique_clip.interop.surgery": ("to_oblique", "oblique_config"),
        "oblique_clip.interop.clip_mtob": ("load_clip_mtob", "BertTokenizer", "PostNormTextTower"),
        "oblique_clip.interop.clip_benchmark": ("register", "load_model", "FlatEncoder", "zero_shot", "retrieval"),
        "oblique_clip.interop.hub": ("save_pretrained", "from_pretrained", "push_to_hub"),
    },
    "Data": {
        "oblique_clip.data.sources": (
            "open_training_data", "open_pairs", "is_shards", "is_table", "Kind", "kind_of", "open_as",
        ),
        "oblique_clip.data.images": (
            "decode_square", "Preprocess", "Augmentation", "TrainingPixels", "Side", "middle_square", "to_rgb",
        ),
        "oblique_clip.data.batches": (
            "Batch", "MapBatches", "endless", "caption_key", "caption_group", "prefetch",
        ),
        "oblique_clip.data.subset": ("Subset",),
        "oblique_clip.data.order": (
            "Position", "Share", "epoch_batches", "without_twins", "shuffled_windows", "noise_permutation",
        ),
        "oblique_clip.data.faults": (
            "BadSample", "Lost", "clean_caption", "refuse_bad", "refuse_shards", "cause_of", "by_cause",
        ),
        "oblique_clip.check": ("read_fully",),
        "oblique_clip.data.tables": ("open_table", "FilePairs", "below"),
        "oblique_clip.data.shards": ("expand_shards", "read_shards", "read_records", "Sample", "shards_fingerprint"),
        "oblique_clip.data.tar": ("read_members",),
        "oblique_clip.data.stream": ("ShardBatches",),
        "oblique_clip.data.folders": ("open_class_folder", "ClassPictures", "is_picture", "picture_suffixes"),
        "oblique_clip.data.captioned": ("CaptionedPictures", "of_pairs", "of_shards", "of_json"),
        "oblique_clip.data.benchmarks": ("open_webdataset", "open_torchvision", "read_names", "read_lines"),
        "oblique_clip.data.emoji": ("load_emoji", "EmojiSet", "Record", "concept_split", "cache_folder"),
        "oblique_clip.data.splits": ("split_emoji", "EmojiSplits", "EmojiPairs"),
    },
}  # fmt: skip

# What the modules above define without a page: protocols, whose implementations have one, and what serves only other
# modules of the library.
INTERNAL: dict[str, tuple[str, ...]] = {
    "oblique_clip.checkpoint": ("home_of", "check_points", "write_tensors", "step_of"),
    "oblique_clip.model": ("ImageEncoder", "TextEncoder", "Encoder"),
    "oblique_clip.weights_file": ("first_bytes", "why_unreadable", "is_safetensors", "is_torch"),
    "oblique_clip.tokenizer": ("Tokenizer",),
    "oblique_clip.files": ("put_in_place",),
    "oblique_clip.config": ("check_folder", "check_file", "read_json"),
    "oblique_clip.train": ("total_steps",),
    "oblique_clip.loop": ("Loop", "Parts"),
    "oblique_clip.health": ("BadStep", "point_names", "Faults", "faults_of"),
    "oblique_clip.state": ("Damaged", "save", "newest", "at_step", "clear"),
    "oblique_clip.logs": ("Logger", "Silent"),
    "oblique_clip.distributed": ("Ranks",),
    "oblique_clip.plan": ("Line", "towers_of", "print_plan", "Kept"),
    "oblique_clip.distill": ("refuse_seen",),
    "oblique_clip.towers": ("one_share", "is_text", "init_blocks", "grouped"),
    "oblique_clip.explain": ("draw",),
    "oblique_clip.draw.places": ("titled",),
    "oblique_clip.draw.similarities": ("Pairs", "draw_band"),
    "oblique_clip.evaluate.templates": ("from_clip_benchmark",),
    "oblique_clip.sweep.question": ("nothing",),
    "oblique_clip.evaluate.judge": ("space_of", "prefix_sizes", "read_built"),
    "oblique_clip.evaluate.encode": ("Encoder",),
    "oblique_clip.evaluate.pictures": ("check_flags",),
    "oblique_clip.evaluate.run": ("evaluate_pictures", "evaluate_captions"),
    "oblique_clip.report": ("differences", "comparison", "print_tables", "print_evaluation", "print_skipped"),
    "oblique_clip.page.write": ("Look",),
    "oblique_clip.page.family": ("look", "has_model"),
    "oblique_clip.page.examples": ("OfPicture", "OfName", "Retrieval"),
    "oblique_clip.page.confusion": ("Pair", "Draw", "Groups", "Confusion"),
    "oblique_clip.page.spread": ("Spread",),
    "oblique_clip.page.map": ("Map", "sampled"),
    "oblique_clip.page.runs": ("Grid", "Fact", "facts", "differences_grid"),
    "oblique_clip.page.curves": ("Curve", "curves"),
    "oblique_clip.page.render": ("environment", "data_address", "picture_address"),
    "oblique_clip.embed": ("Item", "import_arrow"),
    "oblique_clip.search": ("print_answer",),
    "oblique_clip.export": ("save_torch", "save_onnx"),
    "oblique_clip.explore.geometry": ("Similarities", "Histogram"),
    "oblique_clip.explore.spheres": ("ScoreShares", "Votes", "top1"),
    "oblique_clip.explore.dimension": ("geodesic_radii",),
    "oblique_clip.explore.homology": ("Landmarks",),
    "oblique_clip.explore.paths": ("Traversal",),
    "oblique_clip.explore.points": (
        "own",
        "chords_of",
        "geodesics_of",
        "one_sphere",
        "blocks",
        "Neighbours",
        "sample_rows",
        "distinct_rows",
        "paired",
        "parallel_transport",
    ),
    "oblique_clip.interop.open_clip": ("open_clip_config", "build_towers", "SharedTemperature", "cut_of", "Cut"),
    "oblique_clip.interop.clip_mtob": ("load_address", "NoVocabulary"),
    "oblique_clip.interop.clip_benchmark": ("check",),
    "oblique_clip.interop.hub": ("model_file",),
    "oblique_clip.data.sources": ("is_emoji",),
    "oblique_clip.data.batches": ("TrainingData", "PairSource", "smallest_batch"),
    "oblique_clip.check": ("check", "Found", "CheckCommand", "Reading"),
    "oblique_clip.data.tables": ("file_pairs",),
    "oblique_clip.data.shards": ("pairs_of", "Pair", "picture_of", "caption_of", "name_of"),
    "oblique_clip.data.tar": ("Member",),
    "oblique_clip.data.images": ("formats",),
    "oblique_clip.data.benchmarks": ("is_webdataset", "webdataset_type", "webdataset_shards", "is_torchvision"),
}


def on_config(config: MkDocsConfig) -> None:
    docs = Path(config.docs_dir)
    pages = {path.parent.name: f"{path.parent.name}/README.md" for path in docs.glob("*/README.md")}
    pages |= {path.stem: path.name for path in docs.glob("*.md")}
    config.nav = [
        {"Home": "index.md"},
        {"Reference": [{title: _address(title)} for title in PAGES]},
        {"Notebooks": "notebooks/README.md"},
        {"Evidence": [{name.replace("_", " "): pages[name]} for name in sorted(pages)]},
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    pages = {"index.md": _front_page(), "wide.css": WIDE, **{_address(title): _reference(title) for title in PAGES}}
    for address, text in pages.items():
        files.append(File.generated(config, address, content=text))
    notebooks = {f"notebooks/{path.name}": f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.*")}
    for address, source in {"NOTICE.txt": "NOTICE", "SECURITY.md": "SECURITY.md", **notebooks}.items():
        files.append(File.generated(config, address, abs_src_path=str(ROOT / source)))
    return files


def _front_page() -> str:
    """The README, its links as they are within the site."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.replace("](experiments/", "](").replace("](NOTICE)", "](NOTICE.txt)")


def _reference(title: str) -> str:
    modules = (f"::: {module}\n    options:\n      members: {list(names)}\n" for module, names in PAGES[title].items())
    return "\n".join([f"# {title}\n", *modules])


def _address(title: str) -> str:
    return f"reference/{title.lower().replace(' ', '_')}.md"
