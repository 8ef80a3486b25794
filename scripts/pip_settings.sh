# Sourced by the scripts that install.

# uv reads none of pip's variables; a machine behind a mirror has set them for pip.
hand_on_pip_settings() {
    if [ -n "${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}; fi
    if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS=${UV_FIND_LINKS:-$PIP_FIND_LINKS}; fi
    if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}; fi
    export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300} # seconds without a byte; the default of 30 breaks on slow lines
}
