"""Messages of a machine, a network or an installation that is not fit to serve."""

from __future__ import annotations

import re

from tuner.vllm.cause import Fault
from tuner.vllm.pattern import OWN_CONFIG, Pattern

_R = re.compile
_E, _O = Fault.ENVIRONMENT, Fault.OURS
_ENLARGE_SHM = "remove stale files from /dev/shm or enlarge it (docker: --shm-size, --ipc=host)"
_CHECK_MODEL = "check --model; a gated or private model needs HF_TOKEN in the environment"

MACHINE_PATTERNS: tuple[Pattern, ...] = (
    # ── ports, files, host memory ───────────────────────────────────────────────────────────────────────────────────
    Pattern(
        "port-in-use", _E,
        _R(
            r"\[Errno 98\]|EADDRINUSE|errno: 98\b|[Aa]ddress (?:already )?in use"
            r"|error while attempting to bind on address|Could not find open port"
        ),
        "Another process holds the port.", "start again: every start takes a fresh port",
    ),
    Pattern(
        "shm-full", _E,
        _R(r"Insufficient space in /dev/shm for [^\n]*?: (?P<needed>\d+) MiB required, (?P<free>\d+) MiB free"),
        "/dev/shm has {free} MiB free and vLLM needs {needed}.", _ENLARGE_SHM,
    ),
    Pattern(
        "shm-full", _E,
        _R(
            r"No space left on device: ['\"]?(?:/dev/shm/|/?psm_)|unable to (?:open|mmap|allocate) shared memory"
            r"|Bus error"
            r"|creating shared memory segment|/dev/shm/nccl|posix_fallocate failed|insufficient shared memory"
            r"|shared memory[^\n]{0,60}No space left|No space left[^\n]{0,60}(?:/dev/shm|shared memory|torch_\d+_\d+)"
        ),
        "/dev/shm is full.", _ENLARGE_SHM,
    ),
    Pattern(
        "disk-full", _E, _R(r"\[Errno 28\]|No space left on device|Disk quota exceeded|os error 28|\[Errno 122\]"),
        "The disk is full.", "free some space, then go on with the study",
    ),
    Pattern(
        "permission", _E,
        _R(r"PermissionError|Permission denied|Read-only file system|\[Errno (?:13|30|1)\]|Operation not permitted"),
        "vLLM may not write or read one of its files: {line}",
        "give it a cache folder of its own: HOME, HF_HOME, VLLM_CACHE_ROOT or TRITON_CACHE_DIR",
    ),
    Pattern(
        "host-memory-exhausted", _E,
        _R(
            r"\[Errno 12\]|Cannot allocate memory|std::bad_alloc|DefaultCPUAllocator: |^MemoryError"
            r"|node running low on memory|worker died due to OOM"
        ),
        "The machine ran out of host memory.", "end other programs, then go on with the study",
    ),
    Pattern(
        "too-many-files", _E, _R(r"\[Errno 24\]|Too many open files"),
        "The limit of open files is reached.", "raise it in this shell: ulimit -n 65536",
    ),
    Pattern(
        "too-many-threads", _E,
        _R(r"can't start new thread|\[Errno 11\]|pthread_create failed|Thread creation failed"
           r"|Resource temporarily unavailable"),
        "No more threads or processes may be started.", "raise the limit in this shell: ulimit -u, or the container's",
    ),
    Pattern(
        "numa-nodes", _E, _R(r"Not enough allowed NUMA nodes to bind threads"),
        "The CPU build wants one NUMA node per tensor-parallel rank and this machine has fewer.",
        "lower --tensor-parallel-size or set VLLM_CPU_OMP_THREADS_BIND",
    ),
    # ── devices ─────────────────────────────────────────────────────────────────────────────────────────────────────
    Pattern(
        "gpu-busy", _E, _R(r"devices?(?:\(s\))? (?:is/)?are (?:all )?busy or unavailable|busy or unavailable"),
        "Another process has a GPU for itself, or the driver does not give it out.",
        "see nvidia-smi: compute mode, MIG and processes; a reset or reboot may be due",
    ),
    Pattern(
        "no-device", _E,
        _R(
            r"Failed to infer device type|Device string must not be empty|No (?:CUDA|HIP|XPU) (?:GPUs"
            r"|devices) are available"
            r"|no (?:CUDA|ROCm)-capable device is detected|Torch not compiled with CUDA|Found no NVIDIA driver"
            r"|CUDA_VISIBLE_DEVICES is set to empty"
            r"|Current node has no \w+ available|Ray does not allocate any \w+ on the driver node"
            r"|No \w+ (?:is )?found on this"
            r"|UnspecifiedPlatform|device < num_gpus"
            r"|hipErrorNoDevice|cudaErrorNoDevice|[Nn]o accelerator (?:is )?(?:found|available)"
        ),
        "vLLM finds no device that it was built for.", "check nvidia-smi, CUDA_VISIBLE_DEVICES and the vLLM build",
    ),
    Pattern(
        "no-kernel", _E,
        _R(
            r"no kernel image is available for execution|invalid device function|hipErrorNoBinaryForGpu"
            r"|unsupported (?:PTX )?toolchain|was compiled with an unsupported|invalid kernel file"
            r"|is not compatible with the current PyTorch"
            r"|code object is not|GPU archs? of [^\n]*not supported|kernel image is invalid|Illegal instruction|AVX512"
        ),
        "This build of vLLM or torch has no code for this GPU.", "install a build that supports the GPU",
    ),
    Pattern(
        "driver", _E,
        _R(
            r"CUDA driver version is insufficient|NVIDIA driver on your system is too old|CUDA unknown error"
            r"|[Vv]ersion mismatch|libcuda\.so\.1: cannot open|CUDA initialization: |(?:CUDA|HIP) error: initialization"
            r"|CUDA driver initialization"
            r"|system not yet initialized|Error 80\d: |forward compatibility was attempted|unsupported display driver"
            r"|system driver mismatch|NVML\b|NVMLError|nvmlInit|ROCm driver|hsa_init|HSA_STATUS_ERROR"
            r"|CUDA error: (?:unknown error|named symbol not found)|libcuda\.so cannot found|\d active drivers"
            r"|cudaErrorInsufficientDriver|Unexpected error from (?:cuda|hip)GetDeviceCount"
            r"|(?:hip|cuda|CUDA|HIP) (?:runtime|driver) failed to load"
            r"|(?i:(?:update|upgrade) (?:(?:the|your|version|of|nvidia|gpu) )*(?:driver|cann|cuda|rocm)\b)"
        ),
        "The GPU's driver and this vLLM do not work together.", "check nvidia-smi; a driver update may need a reboot",
    ),
    Pattern(
        "gpu-broken", _E,
        _R(
            r"uncorrectable (?:ECC|NVLink) error|GPU is lost|fallen off the bus|DEVICE_LOST"
            r"|CUDA error: (?:unspecified launch|hardware stack)|hardware execution error|[Tt]ry resetting the"
        ),
        "The GPU reports a hardware fault.", "check dmesg for Xid lines; a reset or reboot is due",
    ),
    # ── compilers ───────────────────────────────────────────────────────────────────────────────────────────────────
    Pattern(
        "compiler-too-old", _E,
        _R(
            r"is not defined for option 'gpu-name'|ptxas(?:-\w+)? fatal|PTXASError|Internal Triton PTX codegen error"
            r"|nvcc fatal|Unsupported gpu architecture|requires CUDA >=|[Uu]nsupported CUDA version"
            r"|CUDA version \([\d.]+\) mismatches"
            r"|Command '[^\n]*?/?ptxas(?:-\w+)?'[^\n]*returned non-zero"
        ),
        "The CUDA compiler is too old for this GPU.", "install a newer CUDA toolkit, or set TRITON_PTXAS_PATH to its "
        "ptxas",
    ),
    Pattern(
        "no-compiler", _E,
        _R(
            r"[Ff]ailed to find C compiler|[Cc]ould not find (?:nvcc|ninja|hipcc|gcc|CUDA installation)"
            r"|nvcc[^\n]{0,20}: not found"
            r"|fatal error: [\w./-]+\.h(?:pp)?: No such file|CUDA_HOME (?:environment variable )?is not set"
            r"|Ninja is required|(?:suitable|requires) nvcc"
            r"|[Nn]inja build failed|ninja: build stopped|Error (?:building|compiling) (?:extension|objects)"
            r"|InvalidCxxCompiler|CppCompileError|CUDA ?CompileError|No working C\+\+ compiler|cannot find -l\w+"
            r"|No such file or directory: ['\"][^'\"]*?(?:nvcc|gcc|g\+\+|cc|c\+\+|clang|ninja|ptxas|hipcc|ld\.lld"
            r"|cmake)['\"]"
            r"|Command '?\[?'?[^\n]{0,300}?(?:gcc|g\+\+|\bcc|clang|nvcc|ninja|hipcc)\b[^\n]*returned non-zero"
        ),
        "vLLM compiles kernels at its start, and the compiler or a header is missing: {line}",
        "install gcc, the headers of Python (python3-dev) and, for FlashInfer, the CUDA toolkit with nvcc and ninja",
    ),
    # ── the hub ─────────────────────────────────────────────────────────────────────────────────────────────────────
    Pattern(
        "hub-busy", _E, _R(r"429 Client Error|Too Many Requests|HTTP Error 429|[Rr]ate limit"),
        "The model's hub answers no more: too many requests.",
        "wait, set HF_TOKEN, or give --model a folder and set HF_HUB_OFFLINE=1",
    ),
    Pattern(
        "model-gated", _E,
        _R(
            r"(?i:gated repo)|Access to model [^\n]* is restricted|You are trying to access a gated|40[13] Client Error"
            r"|GatedRepoError|Invalid (?:user token|username or password)|Cannot access gated"
        ),
        "The model is gated and this machine has no access to it.", _CHECK_MODEL,
    ),
    Pattern(
        "hub-unreachable", _E,
        _R(
            r"[Ww]e couldn't connect to '?https?://|NameResolutionError|name resolution|Failed to resolve '"
            r"|Max retries exceeded with url|ConnectTimeout|ReadTimeout(?:Error)?: |Network is unreachable"
            r"|No route to host"
            r"|SSLError|CERTIFICATE_VERIFY_FAILED|ProxyError|50\d Server Error|OfflineModeIsEnabled"
            r"|offline mode is enabled"
            r"|LocalEntryNotFoundError|cannot find the requested files in the (?:disk|local) cache|IncompleteRead"
            r"|ChunkedEncodingError|specific connection error|gaierror|Cannot reach https?://"
            r"|outgoing traffic has been disabled|RemoteProtocolError|[Ff]ailed to download|[Ee]rror downloading"
            r"|(?:httpx|requests\.exceptions"
            r"|urllib3\.exceptions)\."
            r"(?:Connect|Connection|Proxy|Read|Protocol|NewConnection|MaxRetry)\w*"
        ),
        "Files of the model are not on this machine, and the hub cannot be reached.",
        "check the network and proxy; or download the model, give --model its folder and set HF_HUB_OFFLINE=1",
    ),
    Pattern(
        "weights-broken", _E,
        _R(
            r"SafetensorError|MetadataIncompleteBuffer|InvalidHeader|HeaderTooLarge|Error while deserializing header"
            r"|PytorchStreamReader failed|invalid load key|unexpected EOF, expected|JSONDecodeError"
            r"|is not a valid JSON file|Consistency check failed|unexpected end of file|UnpicklingError"
            r"|not fully covered|incomplete metadata"
        ),
        "A file of the model is damaged or was not downloaded completely: {line}",
        "remove the file and download the model again",
    ),
    Pattern(
        "tokenizer-missing", _E,
        _R(
            r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for|Unable to load vocabulary"
            r"|untagged enum|Tokenizer class \S+ does not exist"
        ),
        "The model's folder has no tokenizer that can be loaded.", "complete the model's folder or give --tokenizer",
    ),
    Pattern(
        "model-not-found", _E,
        _R(
            r"is not a local folder and is not a valid model identifier|Repository Not Found|RepositoryNotFoundError"
            r"|Repo id must be in the form|HFValidationError|does not appear to have (?:a file|files) named"
            r"|Invalid repository ID or local directory specified|404 Client Error|EntryNotFoundError|Entry Not Found"
            r"|No supported config format found|Could not detect config format|Found multiple config files"
            r"|RevisionNotFoundError|Can't load (?:the )?(?:configuration|model|[a-z ]*processor|feature extractor)"
            r"|Cannot find any model weights with"
            r"|No such file or directory: ['\"]?[^'\"\n]*\.(?:json|safetensors|gguf|bin|model|txt|pt|py|jinja)\b"
            r"|[Mm]odel path [^\n]* (?:does not exist|not found)"
        ),
        "The model is not where --model says.", _CHECK_MODEL,
    ),
    # ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────
    Pattern(
        "container-refused", _E,
        _R(r"Error response from daemon|nvidia-container-cli|Unable to find image|pull access denied|manifest unknown"
           r"|could not select device driver|CDI device injection failed"),
        "The container engine did not start the container: {line}", "see what the command of --vllm says by itself",
    ),
    Pattern(
        "command-not-found", _E, _R(r"exec: [^\n]*not found|sh: \d+: exec: [^\n]*|^bash: [^\n]*: command not found"),
        "The command that starts vLLM cannot be executed.", "check --vllm",
    ),
    Pattern(
        "socket-path", _O, _R(r"AF_UNIX path too long|ipc path [^\n]* is longer than \d+ characters"),
        "The temporary folder's name is too long for a socket.", "set TMPDIR to a short path, and report this",
    ),
)  # fmt: skip

MACHINE_CLASSES: tuple[Pattern, ...] = (
    Pattern(
        "nccl", _E,
        _R(r"NCCL (?:error|Error)|NCCL failure|ncclSystemError|ncclUnhandledCudaError|ncclInternalError"
           r"|DistBackendError|ncclRemoteError|RCCL|oneCCL|HCCL (?:function )?error"
           r"|custom_all_reduce|peer access is not supported"),
        "The GPUs could not talk to each other.", "see the log's NCCL lines; NCCL_P2P_DISABLE=1 helps some machines",
    ),
    Pattern(
        "network", _E,
        _R(
            r"DistNetworkError|DistStoreError|ZMQError|No such device \(addr|The client socket has|TCPStore"
            r"|Unable to find address for|makeDeviceForHostname|gloo/transport|Gloo connectFullMesh"
            r"|Failed to connect to GCS|Ray cluster|running Ray instance|node timed out during startup|resolve hostname"
            r"|RuntimeEnvSetupError|ActorUnschedulableError|RaySystemError|\[c10d\] The"
            r"|\[Errno (?:99|10[0-4]|11[0-3])\]"
        ),
        "The processes of the server could not reach each other: {line}",
        "check the network interfaces: VLLM_HOST_IP, GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME",
    ),
    Pattern(
        "forked", _E,
        _R(r"Cannot re-initialize \w+ in forked subprocess"),
        "A plugin or a wrapper of vLLM touched the GPU before the workers were forked.",
        "set VLLM_WORKER_MULTIPROC_METHOD=spawn",
    ),
    Pattern(
        "hub-unreachable", _E,
        _R(
            r"HfHubHTTPError|HTTPError: |huggingface_hub\.\S*Error|modelscope\.\S*Error|StreamerError"
            r"|CAS service error|while downloading|botocore\.|google\.auth\."
        ),
        "The model's hub refused a request: {line}", "check the network, --model and HF_TOKEN",
    ),
    Pattern(
        "no-compiler", _E,
        _R(r"CalledProcessError|FileNotFoundError: [^\n]*No such file or directory: ['\"][\w+.-]+['\"]$"),
        "A program that vLLM needs at its start is missing or failed: {line}", "see the end of the log",
    ),
    Pattern(
        "system-refused", _E, _R(r"Error: \[Errno (?!2\]|20\]|21\])\d+\]"),
        "The operating system refused something: {line}", "see the end of the log, and the kernel's (dmesg)",
    ),
    Pattern(
        "file-missing", _E, _R(r"FileNotFoundError|NotADirectoryError|IsADirectoryError"),
        "A file is missing: {line}", "check the paths in the words after -- and the model's folder",
    ),
    Pattern(
        "vllm-broken", _E,
        _R(
            r"ModuleNotFoundError|ImportError|PackageNotFoundError|undefined symbol|cannot open shared object file"
            r"|GLIBC(?:XX)?_\d|module '[\w.]+' has no attribute|Failed to import [\w.]+"
            r"|has no attribute '(?:_C|rms_norm|\w+)' in '_OpNamespace'|'_OpNamespace'"
            r"|'_C' object has no attribute|operator \w+::\w+ does not exist|\w::\w+\(\) (?:expected|is missing) "
            rf"|{OWN_CONFIG}|numpy\.dtype size changed|[Pp]lease (?:run )?[`'\"]?(?:pip"
            r"|uv pip)? ?install|(?:Runtime|Value|Assertion)Error: [^\n]*(?:\bis not available(?:\.| or|$)"
            r"|\b(?:is|are) not installed|is unavailable in the current)"
            r"|No module named|DistributionNotFound|pip install|platform plugin"
            r"|AttributeError: [^\n]*[Tt]okenizer\w*[^\n]* has no attribute"
        ),
        "The vLLM installation is incomplete: {line}", "repair it: `vllm serve --help` must work",
    ),
    Pattern(
        "bad-variable", _E,
        _R(r"ValueError: (?:(?:Invalid|Unsupported) value [^\n]* for )?VLLM_[A-Z]|int\(\) with base 10: '\w+://"),
        "An environment variable has a value that vLLM refuses: {line}", "correct or unset it",
    ),
    Pattern(
        "terminated", _E,
        _R(
            r"KeyboardInterrupt|\[shutdown\] API server: shutdown triggered"
            r"|Waiting up to \d+ seconds for processes to exit"
        ),
        "Somebody else sent the server a signal to end.", "see who ends processes on this machine",
    ),
)  # fmt: skip
