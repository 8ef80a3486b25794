"""``ballast keys create|list|revoke``."""

import os
import time
from argparse import Namespace

from serving.commands.settings import load_settings
from serving.config import Config
from serving.config.findings import nearest
from serving.errors import OperatorError
from serving.tenancy import keys_cli
from serving.tenancy.keys import NewKey
from serving.tenancy.store import KeyStore


def run(arguments: Namespace) -> int:
    """Works on the store in the config's state folder, whether or not a server runs."""
    _, config = load_settings(arguments)
    now_s = time.time()
    new = _new_key(arguments, config, now_s) if arguments.action == "create" else None
    with KeyStore.open(config.server.state_dir) as store:
        if new is not None:
            print(keys_cli.create(store, new, rng=os.urandom, now_s=now_s, as_json=arguments.json))
        elif arguments.action == "list":
            print(keys_cli.list_keys(store, now_s=now_s, as_json=arguments.json))
        else:
            print(keys_cli.revoke(store, arguments.key, now_s=now_s, as_json=arguments.json))
    return 0


def _new_key(arguments: Namespace, config: Config, now_s: float) -> NewKey:
    """Raises OperatorError for a model that the config does not have: such a key would be of no use."""
    known = config.model_names
    for name in arguments.model or ():
        if name not in known:
            close = nearest(name, list(known))
            hint = f"did you mean {close!r}?" if close else f"there are {', '.join(known)}."
            raise OperatorError(f"The config has no model {name[:80]!r}; {hint}")
    models = tuple(arguments.model) if arguments.model else None
    return NewKey(arguments.name, arguments.tenant, models, keys_cli.parse_expiry(arguments.expires, now_s))
