"""The flags that name files and folders, and say what goes into them. Nothing here imports torch."""

from fedmerge.config.option import Option

FILES = [
    Option("data_root", "./data", "path", "folder of the datasets", named=False),
    Option(
        "plugin",
        None,
        "path",
        "a Python file, or a folder of them, that registers more components; also the folders in FEDMERGE_PLUGINS",
        named=False,
    ),
    Option(
        "out",
        None,
        "path",
        "folder of metrics, plots, checkpoints and results.csv, where the next four flags do not say otherwise",
        named=False,
    ),
    Option("metrics_dir", "metrics", "path", "folder for <run>_metrics.csv and <run>.json", named=False),
    Option("plots_dir", "plots", "path", "folder for the figures of each run", named=False),
    Option("results_file", "results.csv", "path", "one row per finished run", named=False),
    Option("checkpoint_dir", "checkpoints", "path", "folder from which a run that was ended goes on", named=False),
    Option(
        "checkpoint_every",
        None,
        "count",
        "rounds between checkpoints (default: so that they take 1 % of the time, 10 minutes at most)",
        named=False,
    ),
    Option("fresh", False, "flag", "do not go on from a checkpoint, but start over", named=False),
    Option("save_config", None, "path", "write the settings here as TOML, for --config", named=False),
    Option(
        "save_weights",
        None,
        "path",
        "write the final model here, for --init_weights, and a card that tells of it, FILE.md: as safetensors or ONNX "
        "where the name ends in .safetensors or .onnx, else as torch.save does",
        named=False,
    ),
    Option("save_clients", None, "path", "write each client's personal part here, as payload files", named=False),
    Option(
        "part_kind",
        "sparse",
        ("sparse", "tall", "emr"),
        "what it holds: some of the client's changes, or a mask of the shared model's way from the initial one "
        "(TALL, EMR)",
        named=False,
        needs="save_clients",
    ),
    Option(
        "part_sparsity",
        None,
        "share",
        "share of the weights in such a part (default: what the algorithm sends)",
        named=False,
        needs="save_clients",
    ),
    Option(
        "part_bits",
        None,
        "bits",
        "bits of a value in it (default: --value_bits)",
        named=False,
        needs="save_clients",
    ),
    Option(
        "tall_lambda",
        0.4,
        "positive",
        "lambda: how near the shared model must be to the client's, for the mask",
        named=False,
        needs="part_kind=tall",
    ),
    Option(
        "evaluate_clients",
        None,
        "path",
        "train nothing: judge what --save_clients left in this folder",
        named=False,
    ),
    Option(
        "track",
        None,
        ("tensorboard", "wandb", "mlflow", "trackio"),
        "tell this tracker of settings, rounds and final figures; its package must be installed",
        named=False,
    ),
    Option("track_dir", "tracks", "path", "folder of what trackers write", named=False, needs="track"),
    Option("overwrite", False, "flag", "run again what is already finished", named=False),
    Option("quiet", False, "flag", "print only the last line", named=False),
]
