"""`serve`: a reward model behind HTTP, until Ctrl-C."""

import ipaddress
import socket
import warnings
from importlib import import_module
from pathlib import Path

from jsonargparse import Namespace
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ser_lightning.cli.score import load_scorer
from ser_lightning.errors import Terminated, UserError, raise_problems
from ser_lightning.serving.batching import MAX_WAITING_ROWS
from ser_lightning.utils.terminal import say


def main(args: Namespace) -> None:
    """Run the command with its flags."""
    raise_problems(_problems(args))
    for package in ("fastapi", "uvicorn"):
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(
                f"serve: got no package {error.name}; install it with pip install 'ser-lightning[serve]'"
            ) from error
    import uvicorn

    from ser_lightning.serving.app import LOCAL_HOSTS, RewardService, make_app

    with _bound_socket(args.host, args.port) as listener:  # before the model is loaded, which takes long
        policy_tokenizer = _load_policy_tokenizer(args.policy, args.trust_remote_code) if args.policy else None
        service = RewardService(load_scorer(args), policy_tokenizer, args.max_rows, args.max_wait_ms)
        is_local = _is_local(args.host)
        app = make_app(service, args.max_body_mib * 2**20, (*LOCAL_HOSTS, args.host) if is_local else None)
        host, port = listener.getsockname()[:2]
        listener.listen()
        if not is_local:
            warnings.warn(
                f"everybody who reaches {host}:{port} can use the model: there is no password and no TLS", stacklevel=1
            )
        shown = f"[{host}]" if ":" in host else host
        say(f"Serving {service.name} at http://{shown}:{port}; Ctrl-C ends it")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        try:
            server.run(sockets=[listener])
        except (KeyboardInterrupt, Terminated):  # which uvicorn raises again when all is answered
            say("Ended")


def _problems(args: Namespace) -> list[str]:
    found = []
    if not 1 <= args.max_rows <= MAX_WAITING_ROWS:
        found.append(f"--max_rows: got {args.max_rows}; use 1 to {MAX_WAITING_ROWS}, the most that may wait")
    if args.max_body_mib < 1:
        found.append(f"--max_body_mib: got {args.max_body_mib}; use at least 1")
    if not 0 <= args.max_wait_ms <= 10_000:
        found.append(f"--max_wait_ms: got {args.max_wait_ms}; use 0 to 10000")
    if not 0 <= args.port <= 65_535:
        found.append(f"--port: got {args.port}; use 0, which takes a free one, to 65535")
    if args.policy and not Path(args.policy).expanduser().is_dir():
        found.append(f"--policy: got {args.policy}, which is no folder; give the folder of a model or tokenizer")
    return found


def _bound_socket(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except socket.gaierror as error:
        listener.close()
        raise UserError(f"--host: got {host} ({error.strerror}); use an address of this machine") from error
    except OSError as error:
        listener.close()
        raise UserError(
            f"--port: got {port} on {host}, which cannot be taken ({error.strerror}); use another, or 0 for a free one"
        ) from error
    return listener


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _load_policy_tokenizer(folder: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            Path(folder).expanduser(), trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(f"--policy: got {folder}, which has no tokenizer; give the folder of the policy") from error
    if not tokenizer.chat_template:
        raise UserError(f"--policy: got {folder}, whose tokenizer has no chat template; leave the flag out")
    return tokenizer
