"""What a new server says about itself: where it is and how to call it."""

from serving.config import Config

_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (nothing is bound here)


def base_url(config: Config) -> str:
    """Where this machine reaches the endpoint; an address for all interfaces is no destination."""
    host = _REACHED_AT.get(config.server.host, config.server.host)
    return f"http://[{host}]:{config.server.port}" if ":" in host else f"http://{host}:{config.server.port}"


def welcome(config: Config, seconds: float, *, needs_key: bool) -> str:
    url, server = base_url(config), config.server
    model = config.models[0]
    names = ", ".join(" = ".join(model.names) for model in config.models)
    key = " -H 'Authorization: Bearer KEY'" if needs_key else ""
    body = f'{{"model": "{model.name}", "messages": [{{"role": "user", "content": "What is 12 + 30?"}}]}}'
    path, call = (
        "/v1/chat/completions",
        "chat.completions.create(model=MODEL, messages=[dict(role='user', content='Hi')])",
    )
    if model.task == "embed":
        body = f'{{"model": "{model.name}", "input": "What is 12 + 30?"}}'
        path, call = "/v1/embeddings", "embeddings.create(model=MODEL, input='Hi')"
    admin = f"http://{server.admin_host}:{server.admin_port}"
    return "\n".join(
        (
            f"Ballast is ready after {seconds:.0f} s at {url}/v1",
            "",
            f"  models   {names}",
            f"  curl     curl {url}{path}{key} -H 'Content-Type: application/json' -d '{body}'",
            f"  python   openai.OpenAI(base_url='{url}/v1', api_key='KEY').{call.replace('MODEL', repr(model.name))}",
            f"  admin    {admin}/admin/status and /metrics, from this machine only",
            f"  log      {server.log_path}",
            "",
            "Ctrl-C stops it.",
        )
    )
