#!/usr/bin/env python3
"""Resync measured with real daemons on this machine: what an idle path carries, and what an application beside it
feels. Prints one JSON object per line. Usage: resync.py HOLDFAST DIRECTORY [ROUNDS]

Three nodes on the loopback interface, backing files in DIRECTORY (not on tmpfs: O_DIRECT is wanted). Rounds with resync
paused and resumed alternate within one run, because only their ratio means anything. Needs fio with its nbd engine."""
import json, os, shutil, signal, subprocess, sys, time

HOLDFAST, ROOT = sys.argv[1], sys.argv[2]
ROUNDS = int(sys.argv[3]) if len(sys.argv) > 3 else 4
SIZE_MIB, DIRTY_MIB = 3072, 2560
NODES = ["alpha", "beta", "witness"]
CONFIG = os.path.join(ROOT, "cluster.toml")
daemons = {}


def config():
    text = '[cluster]\nname = "bench"\nsecret = "a secret for measurements only"\n'
    for i, name in enumerate(NODES):
        text += f'[[node]]\nname = "{name}"\nid = {i + 1}\naddress = "127.0.77.{i + 1}"\n'
        text += f'state_dir = "{ROOT}/{name}"\n' + ("witness = true\n" if name == "witness" else "")
    text += '[[resource]]\nname = "data"\nnodes = ["alpha", "beta"]\npreferred = "alpha"\n'
    text += f'[[resource.volume]]\nname = "v"\nsize = "{SIZE_MIB}MiB"\nfrontend = "none"\n'
    text += f'backing = {{ alpha = "{ROOT}/alpha.img", beta = "{ROOT}/beta.img" }}\n'
    with open(os.open(CONFIG, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)


def start(name):
    os.makedirs(f"{ROOT}/{name}", exist_ok=True)
    log = open(f"{ROOT}/{name}.log", "a")
    daemons[name] = subprocess.Popen(
        [HOLDFAST, "node", "--config", CONFIG, "--name", name], stdout=log, stderr=log)


def ask(*args, name="alpha", check=True):
    done = subprocess.run([HOLDFAST, "--json", *args, "--config", CONFIG, "--name", name],
                          capture_output=True, text=True)
    if check and done.returncode != 0:
        raise SystemExit(f"{args}: {done.stdout}{done.stderr}")
    return done.stdout


def volume():
    return json.loads(ask("status"))["resources"][0]["volumes"][0]


def peer():
    return volume()["local"]["peers"][0]


def fio(name, *args, meanwhile=lambda: None):
    uri = f"nbd+unix:///?socket={ROOT}/alpha/data-v.nbd"
    job = subprocess.Popen(["fio", "--name=" + name, "--ioengine=nbd", "--uri=" + uri, "--output-format=json", *args],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    meanwhile()
    out, err = job.communicate()
    if job.returncode != 0:
        raise SystemExit(err)
    return json.loads(out[out.index("{"):])["jobs"][0]


def dirty():
    """Beta goes, most of the volume is rewritten, beta comes back."""
    ask("resync", "data", "--pause")
    daemons["beta"].send_signal(signal.SIGKILL)
    daemons["beta"].wait()
    fio("fill", "--rw=write", "--bs=1M", "--iodepth=8", f"--size={DIRTY_MIB}m", "--refill_buffers", "--end_fsync=1")
    start("beta")
    while not peer()["attached"]:
        time.sleep(0.2)


def rss_kib(name):
    return [int(line.split()[1]) for line in open(f"/proc/{daemons[name].pid}/status") if line.startswith("VmRSS")][0]


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    os.makedirs(ROOT)
    config()
    for name in NODES:
        start(name)
    time.sleep(2)
    ask("wait", "data", "--for", "quorum", check=False)
    ask("create", "data")
    ask("wait", "data", "--for", "primary")
    ask("promote", "data")

    dirty()
    left = peer()["out_of_sync_bytes"]
    began = time.monotonic()
    ask("resync", "data", "--resume")
    ask("wait", "data", "--for", "synced", "--timeout", "600")
    seconds = time.monotonic() - began
    print(json.dumps({"what": "idle", "bytes": left, "seconds": round(seconds, 2),
                      "mib_per_second": round(left / seconds / 2**20), "rss_kib": rss_kib("alpha")}), flush=True)

    for workload in (["--rw=randwrite", "--iodepth=1"], ["--rw=randrw", "--iodepth=4", "--rate_iops=300,300"]):
        dirty()
        rounds = {"paused": [], "resumed": []}
        for i in range(ROUNDS):
            for state in ("paused", "resumed"):
                # Resumed only once the application is busy, paused before it counts as idle again.
                before = peer()["out_of_sync_bytes"]

                def resume():
                    time.sleep(0.5)
                    ask("resync", "data", "--resume" if state == "resumed" else "--pause")

                began = time.monotonic()
                job = fio(state, "--bs=4k", f"--size={SIZE_MIB}m", "--time_based", "--ramp_time=2", "--runtime=8",
                          *workload, meanwhile=resume)
                ask("resync", "data", "--pause")
                left = peer()["out_of_sync_bytes"]
                moved = (before - left) / (time.monotonic() - began)
                p99 = {k: job[k]["clat_ns"]["percentile"]["99.000000"] for k in ("read", "write") if job[k]["total_ios"]}
                iops = round(job["read"]["iops"] + job["write"]["iops"])
                line = {"what": "busy", "workload": " ".join(workload), "resync": state, "round": i, "iops": iops,
                        "p99_ns": p99, "resync_mib_per_second": round(moved / 2**20, 1)}
                print(json.dumps(line), flush=True)
                if left > 0:
                    rounds[state].append(p99["write"])
        median = {k: sorted(v)[len(v) // 2] for k, v in rounds.items() if v}
        if len(median) == 2:
            print(json.dumps({"what": "ratio", "workload": " ".join(workload), "median_write_p99_ns": median,
                              "ratio": round(median["resumed"] / median["paused"], 2)}), flush=True)
        ask("resync", "data", "--resume")
        ask("wait", "data", "--for", "synced", "--timeout", "600")


try:
    main()
finally:
    for daemon in daemons.values():
        daemon.kill()
        daemon.wait()
