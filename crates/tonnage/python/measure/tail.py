

def versions():
    from importlib import metadata

    found = {}
    for name in ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "torchvision"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    found["torch"] = torch.__version__
    found["cuda"] = torch.version.cuda
    cudnn = torch.backends.cudnn.version()
    found["cudnn"] = None if cudnn is None else str(cudnn)
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    return found


def main():
    torch.manual_seed(0)
    phases = Phases()
    model, extra = prepare(phases)
    work(model, phases)
    extra["device"]["end_bytes"] = driver_bytes()
    record = dict(schema="torch-run", id=ID, config=JOB, versions=versions(), **figures(phases, model, extra))
    record["source"] = "a null CUDA device: real framework, real allocator, no GPU" if NULL_DEVICE else f"measured on {torch.cuda.get_device_name()}"
    text = json.dumps(record)
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w", encoding="utf-8") as f:
            f.write(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
