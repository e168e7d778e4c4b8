"""Do two versions of the program compute the same? For changes that are to change no number.

    python tests/program/same_numbers.py OLD NEW

runs some fifty settings on the digits with the checkouts OLD and NEW, side by side on one thread each, and compares
what they leave, times and versions aside, to the last bit: names of runs, CSVs, records, rows of results.csv, weights,
personal parts. Prints a line for each that differs, and ends with status 1 if any does.
"""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BASE = "--dataset DIGITS --n_epochs 3 --batch_size 16 --lr 0.02 --n_clients 10 --participation 0.4 --seed 3 --quiet"
LONG = f"{BASE} --n_epochs 40 --n_client_epochs 3 --checkpoint_every 1"  # long enough to be killed
ONE = "--n_client_epochs 1"
SETTINGS = [
    *(f"--algorithm {name} {ONE}" for name in ("fedavg", "fedprox", "fedacg", "las", "topk", "stc", "signsgd")),
    *(f"--algorithm {name} {ONE} --dirichlet 0.3" for name in ("median", "trimmed_mean", "krum", "swa", "moon")),
    *(
        f"--algorithm {name} --n_verts 2 --soup_epochs 1 --local_steps 4"
        for name in ("fedavg --local lss", "soups", "diwa")
    ),
    f"--algorithm swad {ONE} --swad_evaluations 4",
    f"--algorithm fedbn {ONE} --min_client_samples 2",
    f"--algorithm centralised {ONE} --n_clients 1 --participation 1",
    f"--algorithm las --preset compact {ONE} --dirichlet 0.3",
    f"--algorithm las --preset compact {ONE} --wire real",
    f"--algorithm las --localiser learned --graft_epochs 1 {ONE} --dirichlet 0.5",
    f"--algorithm las --residual server --server_momentum 0.5 {ONE} --dirichlet 0.3",
    f"--algorithm las --residual client --residual_momentum 0.5 {ONE} --stitch prior --warmup_rounds 2",
    f"--algorithm las --mask_scope floor --stitch all {ONE} --value_bits 8 --wire real",
    f"--algorithm topk --stitch overlap {ONE} --value_bits 4 --wire real",
    *(f"--algorithm fedavg --value_bits {bits} {ONE} --wire real" for bits in (32, 16, 8, 4, 1)),
    *(f"--algorithm las --value_bits {bits} {ONE}" for bits in (16, 1)),
    *(f"--algorithm fedavg --downlink {mode} {ONE} --wire real" for mode in ("dense", "sparse", "individual")),
    f"--algorithm fedacg --downlink individual --down_sparsity 0.1 --down_bits 8 {ONE}",
    f"--algorithm fedacg --acg_beta 0.01 --downlink sparse {ONE} --norm group",
    f"--algorithm fedavg --no-shared_init {ONE} --weighting uniform --eval_every 2 --eval_train",
    f"--algorithm fedavg --dirichlet 0.05 --n_clients 30 {ONE} --min_client_samples 0",
    f"--algorithm fedprox --local_optimizer adam --lr 0.001 --local_steps 2 {ONE}",
    f"--algorithm fedavg --dropout 0.3 --attack noise {ONE} --precision bf16",
    f"--algorithm trimmed_mean --attack sign_flip {ONE} --clip_norm 1 --weight_decay 0.001 --lr_decay 0.9",
    f"--algorithm fedavg --attack label_flip {ONE} --local swa",
    "--algorithm las --local lss --n_verts 2 --soup_epochs 1 --local_steps 3 --later_share 0.5",
    f"--algorithm fedavg --shift feature --n_clients 5 --participation 1 {ONE}",
    f"--algorithm fedbn --shift feature --n_clients 5 --participation 1 {ONE} --norm group",
    f"--algorithm fedavg --dataset DIGITSB --image_size 16 {ONE}",
    f"--algorithm fedavg --model_name resnet18 --local_steps 1 {ONE} --n_epochs 1 --participation 0.2",
    f"--algorithm las {ONE} --lr 1e8 --on_nan skip",
    f"--algorithm fedavg {ONE} --lr 1e8",
    f"--algorithm las {ONE} --dirichlet 0.3 --save_clients parts --part_sparsity 0.05 --part_bits 8",
    f"--algorithm fedbn {ONE} --min_client_samples 2 --save_clients parts",
    f"--algorithm fedavg {ONE} --partition_file split.json --dirichlet 0.3",
]
KILLED = [  # in the midst of a round, then called again
    "--algorithm las --preset compact --dirichlet 0.3 --wire real",
    "--algorithm fedacg --downlink individual --n_epochs 30",
    "--algorithm median --n_epochs 30",
]
TOGETHER = [  # by two processes
    f"--algorithm las --preset compact {ONE}",
    f"--algorithm krum --downlink individual {ONE}",
    f"--algorithm moon {ONE} --value_bits 8",
    f"--algorithm fedbn {ONE} --min_client_samples 2",
]
WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import fedalg, utils
for line in sys.stdin:
    folder, words = json.loads(line)
    import os
    os.makedirs(folder)
    os.chdir(folder)
    try:
        status = fedalg.program(utils.parse_args(words))
    except SystemExit as error:
        status = error.code
    except Exception as error:
        status = f"{type(error).__name__}: {error}"
    open("status", "w").write(str(status))
"""


def folder_of(root, settings):
    return root / hashlib.sha256(settings.encode()).hexdigest()[:12]


def run_all(tree, root):
    """Run all settings with the checkout `tree`, each in a folder of its own under `root`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    how = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    orders = [[str(folder_of(root, s)), [*BASE.split(), *s.split(), "--save_weights", "weights.pt"]] for s in SETTINGS]
    text = "".join(json.dumps(order) + "\n" for order in orders)
    subprocess.run([sys.executable, "-c", WORKER, str(tree)], input=text, text=True, check=True, **how)
    program = str(tree / "fedalg.py")
    for settings in KILLED:
        folder = folder_of(root, settings)
        folder.mkdir()
        words = [sys.executable, program, *LONG.split(), *settings.split(), "--save_weights", "weights.pt"]
        process = subprocess.Popen(words, cwd=folder, **how)
        while process.poll() is None and not any(len(csv_rows(path)) > 2 for path in folder.glob("metrics/*.csv")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        stopped = process.wait()
        status = subprocess.run(words, cwd=folder, **how).returncode
        (folder / "status").write_text(f"{stopped}, {status}")
    for settings in TOGETHER:
        folder = folder_of(root, settings + " by two")
        folder.mkdir()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        launch = [*launch, program, *BASE.split(), *settings.split(), "--save_weights", "weights.pt"]
        (folder / "status").write_text(str(subprocess.run(launch, cwd=folder, **how).returncode))


def csv_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def without_times(value):
    """Return what JSON holds without seconds, versions, paths and hashes of the program."""
    if isinstance(value, dict):
        left_out = ("environment", "train_time", "code")
        return {k: without_times(v) for k, v in value.items() if "seconds" not in k and k not in left_out}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return value


def left_in(folder):
    """Return {file: what it holds} of a run's folder, as far as two versions have to agree on it."""
    import torch

    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.suffix in (".png", ".lock") or path.name.startswith("."):
            found[name] = ""
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            found[name] = without_times(csv_rows(path))
        elif path.suffix == ".pt":
            found[name] = {key: hashed(tensor) for key, tensor in torch.load(path)["state"].items()}
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if name != "status" else path.read_text()
    return found


def hashed(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def differences(old, new, place=""):
    """Return in words where two values differ; what only the new one has in addition is no difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [w for key in old for w in differences(old[key], new.get(key, "nothing"), f"{place}/{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [w for i, pair in enumerate(zip(old, new, strict=True)) for w in differences(*pair, f"{place}[{i}]")]
    return [] if old == new else [f"{place}: {str(old)[:60]} is {str(new)[:60]}"]


def main(old, new):
    trees = [Path(old).resolve(), Path(new).resolve()]
    with tempfile.TemporaryDirectory() as folder:
        roots = [Path(folder) / "old", Path(folder) / "new"]
        for root in roots:
            root.mkdir()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run_all, trees, roots))
        n_different = n_files = 0
        for settings in [*SETTINGS, *KILLED, *(f"{settings} by two" for settings in TOGETHER)]:
            left = [left_in(folder_of(root, settings)) for root in roots]
            n_files += len(left[0])
            found = differences(*left)
            n_different += bool(found)
            status = left[0]["status"]
            print("DIFFERENT" if found else "the same ", f"(status {status}, {len(left[0])} files)", settings)
            for words in found[:6]:
                print("   ", words)
        print(
            f"{n_different} of {len(SETTINGS) + len(KILLED) + len(TOGETHER)} settings differ; {n_files} files compared"
        )
        return 1 if n_different else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
