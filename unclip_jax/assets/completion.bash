# Completes `unclip`, `sample.py` and `train.py`. Made by `unclip completion`.
_unclip() {
  local cur=${COMP_WORDS[COMP_CWORD]} verb='' flag='' flags='' values='' first=1
  case "${COMP_WORDS[0]##*/}" in
    train.py) verb=train; first=0 ;;
    sample.py) values='@SAMPLE@' ;;
    *) values='@VERBS@' ;;
  esac
  COMPREPLY=()
  if [ "$first" = 1 ]; then
    if [ "$COMP_CWORD" = 1 ]; then
      COMPREPLY=($(compgen -W "$values" -- "$cur"))
      return
    fi
    verb=${COMP_WORDS[1]}
    values=''
  fi
  # bash takes `--flag=value` apart at the sign.
  if [ "$cur" = '=' ]; then
    cur=''
    flag=${COMP_WORDS[COMP_CWORD-1]}
  elif [ "${COMP_WORDS[COMP_CWORD-1]}" = '=' ]; then
    flag=${COMP_WORDS[COMP_CWORD-2]}
  else
    flag=${COMP_WORDS[COMP_CWORD-1]}
  fi
  case "$verb $flag" in
@VALUES@
  esac
  # A switch may stand alone, before the next flag.
  if [ -n "$values" ] && [ "${cur#-}" = "$cur" ]; then
    COMPREPLY=($(compgen -W "$values" -- "$cur"))
    return
  fi
  case "$verb" in
@FLAGS@
  esac
  case "$cur" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$cur")) ;;
    *)
      # Words that are no flags: choices of an argument without a name. Files, if none fits.
      local word words=''
      for word in $flags; do
        case "$word" in -*) ;; *) words="$words $word" ;; esac
      done
      [ "$COMP_CWORD" = $((first + 1)) ] && COMPREPLY=($(compgen -W "$words" -- "$cur"))
      ;;
  esac
}
complete -o default -F _unclip unclip sample.py ./sample.py train.py ./train.py
