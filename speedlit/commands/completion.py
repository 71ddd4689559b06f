"""``speedlit completion bash|zsh``: a script that completes commands, recipes, stages and the keys of a run's config."""

from __future__ import annotations

import argparse

BASH = """\
_speedlit() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"
    elif [ "$before" = --config ]; then words="{recipes}"
    elif [ "$before" = --until ] || [ "$before" = --from ] || [ "$command $before" = "synth synth" ]; then words="{stages}"
    elif [ "$command $before" = "study study" ]; then words="scaling ablation cross-model"
    elif [ "${{word#--}}" != "$word" ]; then
        case $command in
            run|plan|synth|study) words="--config --root --topics {keys}" ;;
            fit|validate|test|predict) words="--config --print_config --help-all --ckpt_path --data.shards --trainer.max_steps --trainer.default_root_dir" ;;
        esac
    fi
    [ -n "$words" ] && COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _speedlit speedlit
"""


def run(argv: list[str]) -> int:
    """Print the script."""
    parser = argparse.ArgumentParser(
        prog="speedlit completion",
        description="Print a completion script for a shell.",
        epilog="Example: speedlit completion bash > ~/.local/share/bash-completion/completions/speedlit; for zsh: source <(speedlit completion zsh)",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    shell = parser.parse_args(argv).shell
    print(("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + script(), end="")
    return 0


def script() -> str:
    """The bash script; zsh reads it by way of bashcompinit."""
    from speedlit.cli import COMMANDS
    from speedlit.pipeline.config import Embedded, RunConfig, Teacher
    from speedlit.pipeline.limits import leaves
    from speedlit.pipeline.loop import stages
    from speedlit.pipeline.yamlfiles import shipped

    keys = [key for key, _, _ in leaves(RunConfig(teacher=Teacher(embedded=Embedded())))]
    return BASH.format(
        commands=" ".join(COMMANDS), recipes=" ".join(shipped()), stages=" ".join(stages()), keys=" ".join(f"--{key}" for key in keys)
    )
