# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_jobctl_global_optspecs
    string join \n server= context= client-dir= ca-file= token-file= patience= v/verbose color= h/help V/version
end

function __fish_jobctl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_jobctl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_jobctl_using_subcommand
    set -l cmd (__fish_jobctl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c jobctl -n "__fish_jobctl_needs_command" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_needs_command" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_needs_command" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_needs_command" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_needs_command" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_needs_command" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_needs_command" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_needs_command" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_needs_command" -s V -l version -d 'Print version'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "start" -d 'Start a program or script on a worker; prints the id of the job'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "stop" -d 'Stop jobs and groups, each with everything it started'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "query" -d 'Show jobs, and groups of jobs, in full'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "jobs" -d 'List jobs, the newest first'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "logs" -d 'Show what a job has written, or the jobs of a group'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "wait" -d 'Wait for the end of jobs and groups, and end with their exit code'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "workers" -d 'List the workers and how they stand; label, drain and remove them'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "token" -d 'Make, list and revoke the tokens with which others are let in'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "cert" -d 'See who has a certificate, and revoke what somebody has'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "ca" -d 'See and change the authority that signs for everybody'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "audit" -d 'Show who did what, and who was refused'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "version" -d 'Show the versions of this program and of the scheduler'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "context" -d 'Choose and keep how clusters are reached'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "login" -d 'Join a cluster as a user, with a token an admin made'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "scheduler" -d 'Run the scheduler: the HTTP API, and the list of workers and jobs'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "worker" -d 'Run a worker: starts jobs on this machine, and keeps their output'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "dev" -d 'Run a whole cluster in one process, for trying out'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "completions" -d 'Print the completion script of a shell'
complete -c jobctl -n "__fish_jobctl_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l worker -d 'Where to run it, by id, prefix or name [default: where there is room]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -s l -l label -d 'What its worker\'s labels must be like: `role=web`, `role!=db`, `gpu` or `!gpu`; may be repeated' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l script -d 'A script of the worker\'s script folder' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l with -d 'What runs the script [default: its own #! line]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l count -d 'So many jobs, told apart by JOBCTL_INDEX, from 0' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l each -d 'One job for each line of a file, which it finds in JOBCTL_ITEM; `-` reads the lines from stdin' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l at-once -d 'No more than so many of them on workers at a time' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l env -d 'A variable of its environment; without `=V` its value here' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l cwd -d 'The folder to run in, absolute [default: the script folder]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l user -d 'Whom to run it as, if the worker allows [default: its usual user]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l name -d 'What to call the job; it need not be unique' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l timeout -d 'End it after this time, as `90s` or `10m`' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l priority -d 'Of jobs that wait, the higher one goes first: low, medium, high or a number' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l at -d 'Do not start it before this time, as `2026-01-02T03:04:05Z`' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l in -d 'Do not start it before so long from now, as `10m`' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l after -d 'Start it when this job has succeeded; may be repeated. If it ends otherwise, this one ends as `stopped`' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l after-any -d 'Start it when this job has ended, however that was; may be repeated' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l deadline -d 'Give it up, as `timed_out`, if it has no worker after this time, counted from now or from when it may start' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l retries -d 'Try again when it failed or timed out, so often at most: 0 to 1000' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l retry-pause -d 'Before the first retry; doubles each time, up to 5m [default: 1s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l on-lost -d 'When its worker has lost it: fail, or requeue, and it may run twice' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l idempotency-key -d 'Start it once, however often this is asked for under this key' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l all -d 'One job on each worker that has the labels'
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l stop-on-failure -d 'Once one of them fails, stop the rest'
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l no-queue -d 'Refuse it instead of having it wait for a free slot'
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l wait -d 'Stay until it has ended, and end with its exit code'
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -s f -l follow -d 'Show its output meanwhile, and end with its exit code'
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -l raw -d 'With `--follow`: let control characters act on a terminal'
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand start" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -l signal -d 'The first signal [default: TERM]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -l grace -d 'From the first signal to KILL [default: the worker\'s own]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -l no-wait -d 'Return once the signal was sent'
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand stop" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -s o -l output -d 'How to show it: table, wide, json, jsonl, yaml or name' -r -f -a "table\t''
wide\t''
json\t''
jsonl\t''
yaml\t''
name\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -s q -l quiet -d 'Show whole ids only'
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -l no-headers -d 'Leave out the column names of tables'
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand query" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l state -d 'Only jobs in this state; may be given several times' -r -f -a "pending\t''
running\t''
unknown\t''
succeeded\t''
failed\t''
stopped\t''
timed_out\t''
lost\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l worker -d 'Only jobs of this worker' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l name -d 'Only jobs of this name' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l group -d 'Only jobs of this group, the first first' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -s n -l limit -d 'At most so many' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -s o -l output -d 'How to show it: table, wide, json, jsonl, yaml or name' -r -f -a "table\t''
wide\t''
json\t''
jsonl\t''
yaml\t''
name\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l all -d 'As many as there are'
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -s q -l quiet -d 'Show whole ids only'
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -l no-headers -d 'Leave out the column names of tables'
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand jobs" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -s n -l tail -d 'Begin with the last N lines' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l since -d 'Begin with what was written since, as `2h ago` or RFC 3339' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l attempt -d 'Only this attempt, counted from 1 [default: the last one and those after it]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l offset -d 'Begin with this byte of all attempts\' output' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l stream -d 'Only one of them: stdout or stderr' -r -f -a "stdout\t''
stderr\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -s f -l follow -d 'Go on until the job has ended, and end with its exit code'
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -s t -l timestamps -d 'Put the time before each line'
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -l raw -d 'Let control characters act on a terminal, colours among them'
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand logs" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand wait" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand wait" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand wait" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand wait" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand wait" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand wait" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand wait" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand wait" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand wait" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -s l -l label -d 'Only workers with this label, as KEY=VALUE or KEY; may be repeated' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -s o -l output -d 'How to show it: table, wide, json, jsonl, yaml or name' -r -f -a "table\t''
wide\t''
json\t''
jsonl\t''
yaml\t''
name\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -s q -l quiet -d 'Show whole ids only'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -l no-headers -d 'Leave out the column names of tables'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -f -a "show" -d 'Show all that is known of workers'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -f -a "label" -d 'Set labels of a worker, or take them off'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -f -a "drain" -d 'Give workers no more jobs; those they have go on'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -f -a "resume" -d 'Let workers that were drained take jobs again'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -f -a "remove" -d 'Forget workers that are gone and will not come back'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and not __fish_seen_subcommand_from show label drain resume remove help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -s o -l output -d 'How to show it: table, wide, json, jsonl, yaml or name' -r -f -a "table\t''
wide\t''
json\t''
jsonl\t''
yaml\t''
name\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -s q -l quiet -d 'Show whole ids only'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -l no-headers -d 'Leave out the column names of tables'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from label" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from label" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from label" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from label" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from label" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from label" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from label" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from label" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from label" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -l deadline -d 'Stop what is left of their jobs after so long [default: they end by themselves]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -l wait -d 'Return when no job is left on them'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from drain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from resume" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from resume" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from resume" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from resume" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from resume" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from resume" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from resume" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from resume" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from resume" -s h -l help -d 'Print help'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from remove" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from remove" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from remove" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from remove" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from remove" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from remove" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from remove" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from remove" -s y -l yes -d 'Do not ask'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from remove" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show all that is known of workers'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from help" -f -a "label" -d 'Set labels of a worker, or take them off'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from help" -f -a "drain" -d 'Give workers no more jobs; those they have go on'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from help" -f -a "resume" -d 'Let workers that were drained take jobs again'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Forget workers that are gone and will not come back'
complete -c jobctl -n "__fish_jobctl_using_subcommand workers; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -f -a "create" -d 'Make a token, and print what is to be passed on'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -f -a "list" -d 'List the tokens, the newest first'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -f -a "revoke" -d 'Revoke tokens: from now on they are not taken'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and not __fish_seen_subcommand_from create list revoke help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l role -d 'What its bearer becomes: viewer, operator, admin or worker' -r -f -a "viewer\t''
operator\t''
admin\t''
worker\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l ttl -d 'How long it is good [default: 1h]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l name -d 'What to call its bearer' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l out -d 'Write it to a file that is not there yet, for its owner alone' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -s o -l output -d 'How to show it: json, jsonl or yaml [default: the token alone]' -r -f -a "json\t''
jsonl\t''
yaml\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -l bearer -d 'A token for programs: `Authorization: Bearer`, or `--token-file`'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -s o -l output -d 'How to show it: table, wide, json, jsonl, yaml or name' -r -f -a "table\t''
wide\t''
json\t''
jsonl\t''
yaml\t''
name\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -s q -l quiet -d 'Show whole ids only'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -l no-headers -d 'Leave out the column names of tables'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from revoke" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from revoke" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from revoke" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from revoke" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from revoke" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from revoke" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from revoke" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from revoke" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from revoke" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from help" -f -a "create" -d 'Make a token, and print what is to be passed on'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the tokens, the newest first'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from help" -f -a "revoke" -d 'Revoke tokens: from now on they are not taken'
complete -c jobctl -n "__fish_jobctl_using_subcommand token; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -f -a "list" -d 'List who has a certificate, the newest first'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -f -a "revoke" -d 'Revoke what somebody has: from now on they are refused'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and not __fish_seen_subcommand_from list revoke help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -s o -l output -d 'How to show it: table, wide, json, jsonl, yaml or name' -r -f -a "table\t''
wide\t''
json\t''
jsonl\t''
yaml\t''
name\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -s q -l quiet -d 'Show whole ids only'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -l no-headers -d 'Leave out the column names of tables'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from revoke" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from revoke" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from revoke" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from revoke" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from revoke" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from revoke" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from revoke" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from revoke" -s y -l yes -d 'Do not ask'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from revoke" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from revoke" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from help" -f -a "list" -d 'List who has a certificate, the newest first'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from help" -f -a "revoke" -d 'Revoke what somebody has: from now on they are refused'
complete -c jobctl -n "__fish_jobctl_using_subcommand cert; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -f -a "show" -d 'Show the authorities that are trusted here'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -f -a "rotate" -d 'Have another authority sign from now on, and print its fingerprint'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and not __fish_seen_subcommand_from show rotate help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -s o -l output -d 'How to show it: table, wide, json, jsonl, yaml or name' -r -f -a "table\t''
wide\t''
json\t''
jsonl\t''
yaml\t''
name\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -s q -l quiet -d 'Show whole ids only'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -l no-headers -d 'Leave out the column names of tables'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -l overlap -d 'How long the one before is still trusted; 0s is for emergencies' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -s o -l output -d 'How to show it: json, jsonl or yaml [default: the fingerprint]' -r -f -a "json\t''
jsonl\t''
yaml\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -s y -l yes -d 'Do not ask'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from rotate" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show the authorities that are trusted here'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from help" -f -a "rotate" -d 'Have another authority sign from now on, and print its fingerprint'
complete -c jobctl -n "__fish_jobctl_using_subcommand ca; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -s n -l tail -d 'Only the last so many' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -s o -l output -d 'How to show it: table or json [default: table on a terminal]' -r -f -a "table\t''
json\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -s f -l follow -d 'Go on with the lines that will come'
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -l verify -d 'Check that the lines are those that were written'
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand audit" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -l wait -d 'Wait so long for the scheduler to be ready, as `30s`' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -s o -l output -d 'How to show it: json, jsonl or yaml [default: two lines]' -r -f -a "json\t''
jsonl\t''
yaml\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -l server -d 'The scheduler\'s HTTP API [env: JOBCTL_SERVER] [default: the context\'s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -l context -d 'The context to use [env: JOBCTL_CONTEXT] [default: the current one]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -l ca-file -d 'The authorities to trust, in PEM [env: JOBCTL_CA_FILE] [default: the context\'s]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -l token-file -d 'A bearer token to show instead of what the context has; nobody else may read it [env: JOBCTL_TOKEN_FILE]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -l patience -d 'How long to wait for a scheduler that is being restarted, and for the worker whose output is read [env: JOBCTL_PATIENCE] [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -s v -l verbose -d 'Show each request on stderr'
complete -c jobctl -n "__fish_jobctl_using_subcommand version" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and not __fish_seen_subcommand_from list use show add remove help" -l client-dir -d 'Where the contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and not __fish_seen_subcommand_from list use show add remove help" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and not __fish_seen_subcommand_from list use show add remove help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and not __fish_seen_subcommand_from list use show add remove help" -f -a "list" -d 'List the contexts'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and not __fish_seen_subcommand_from list use show add remove help" -f -a "use" -d 'Make a context the current one'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and not __fish_seen_subcommand_from list use show add remove help" -f -a "show" -d 'Show one context in full'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and not __fish_seen_subcommand_from list use show add remove help" -f -a "add" -d 'Add a context'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and not __fish_seen_subcommand_from list use show add remove help" -f -a "remove" -d 'Remove a context, with those of its files that lie in the client\'s folder'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and not __fish_seen_subcommand_from list use show add remove help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from list" -s o -l output -d 'How to show it: table, wide, json, jsonl, yaml or name' -r -f -a "table\t''
wide\t''
json\t''
jsonl\t''
yaml\t''
name\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from list" -l client-dir -d 'Where the contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from list" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from list" -s q -l quiet -d 'Show whole ids only'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from list" -l no-headers -d 'Leave out the column names of tables'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from use" -l client-dir -d 'Where the contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from use" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from use" -s h -l help -d 'Print help'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from show" -s o -l output -d 'How to show it: table, wide, json, jsonl, yaml or name' -r -f -a "table\t''
wide\t''
json\t''
jsonl\t''
yaml\t''
name\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from show" -l client-dir -d 'Where the contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from show" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from show" -s q -l quiet -d 'Show whole ids only'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from show" -l no-headers -d 'Leave out the column names of tables'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from add" -l server -d 'The scheduler\'s HTTP API' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from add" -l ca-file -d 'What signs the scheduler\'s certificate, in PEM' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from add" -l identity-file -d 'The client\'s certificate and key, in PEM; nobody else may read it' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from add" -l token-file -d 'A bearer token; nobody else may read it' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from add" -l client-dir -d 'Where the contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from add" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from add" -l use -d 'Make it the current one'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from remove" -l client-dir -d 'Where the contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from remove" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from remove" -s y -l yes -d 'Do not ask'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the contexts'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from help" -f -a "use" -d 'Make a context the current one'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show one context in full'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from help" -f -a "add" -d 'Add a context'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Remove a context, with those of its files that lie in the client\'s folder'
complete -c jobctl -n "__fish_jobctl_using_subcommand context; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand login" -l name -d 'What to call the context [default: the scheduler\'s host]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand login" -l client-dir -d 'Where contexts are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand login" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand login" -l replace -d 'Where there is a context of that name, give up its credentials for the new ones'
complete -c jobctl -n "__fish_jobctl_using_subcommand login" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l config -d 'Its settings [default: ./config.toml, if there]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l data-dir -d 'Where to keep the records of jobs and workers [default: ~/.local/state/jobctl/scheduler, or for root /var/lib/jobctl/scheduler]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l http-addr -d 'Where to serve HTTP [default: 127.0.0.1:3000]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l grpc-addr -d 'Where to serve workers [default: 127.0.0.1:50000]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l heartbeat-interval -d 'How often workers are to be heard from [default: 2s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l call-deadline -d 'How long a worker may take to answer [default: 10s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l keep-for -d 'How long to keep finished jobs and their output [default: 30d]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l keep-finished -d 'How many finished jobs to keep [default: 1000000]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l name -d 'A name or address under which it is reached, beside this machine\'s own' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l keep-audit -d 'How long to keep lines of the audit log [default: 365d]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l client-dir -d 'Where the contexts of who starts it are kept [env: JOBCTL_CLIENT_DIR] [default: ~/.config/jobctl]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l handshake -d 'How long a TLS handshake may take [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l headers -d 'How long the headers of a request may take [default: 10s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l header-bytes -d 'How many bytes of headers a request may have [default: 16384]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l streams -d 'How many requests an HTTP/2 connection may have at once [default: 64; a worker\'s: twice its followers]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l connections -d 'How many connections an address may have that asked for something [default: 1024]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l silent -d 'How many connections an address may have that did not [default: 128]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l total-connections -d 'How many connections a server may have in all [default: 8192]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l args -d 'How many arguments a job may have [default: 1000]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l arg-bytes -d 'How many bytes a job\'s arguments and environment may have [default: 262144]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l followers -d 'How many followers the jobs of a worker may have at once [default: 1024]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l body-bytes -d 'How many bytes the body of a request to the HTTP API may have [default: 1048576]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l job-followers -d 'How many followers the output of a job may have at once [default: 128]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l log-level -d 'As `debug`, or `warn,jobctl=trace` [default: info]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l log-format -d 'text or json [default: text]' -r -f -a "text\t''
json\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -l insecure -d 'Speak plain text, on loopback; the HTTP API still asks for a token'
complete -c jobctl -n "__fish_jobctl_using_subcommand scheduler" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l config -d 'Its settings [default: ./config.toml, if there]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l name -d 'What to call it, until its certificate does [default: the name of this machine]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l data-dir -d 'Where to keep its identity and the output of jobs [default: ~/.local/state/jobctl/worker-NAME, or for root /var/lib/jobctl/worker-NAME]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l slots -d 'How many jobs it takes at once; 0: none; or `unlimited` [default: the processors it may use]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l min-free-disk -d 'Take no jobs while the disk of the data folder has less left than this [default: 16MiB]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l label -d 'What jobs may choose it by; may be repeated [default: none]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l grpc-addr -d 'Where to serve the scheduler [default: 127.0.0.1:30000]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l advertise -d 'What the scheduler is to dial [default: what it listens on]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l scheduler -d 'The scheduler\'s gRPC server [default: where the worker joined]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l join -d 'Join a cluster, with the token that the scheduler printed or an admin made; needed once, and again when it is not accepted any more; `-` reads it from standard input' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l script-dir -d 'The scripts it may run [default: `scripts` in its data folder]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l grace -d 'What a job has from TERM to KILL [default: 10s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l output-limit -d 'The most output kept of a job; beyond it the oldest goes [default: 1GiB]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l control-groups -d 'Whether jobs get control groups, where possible [default: true]' -r -f -a "true\t''
false\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l allow-commands -d 'Programs that jobs may execute, or `scripts` or `all` [default: all]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l user -d 'Whom jobs run as [default: the worker\'s own user]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l allow-users -d 'Whom else a job may ask to run as [default: nobody]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l allow-new-privileges -d 'Whether sudo and the like may give jobs more rights [default: false]' -r -f -a "true\t''
false\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l memory -d 'The most memory of a job [default: no limit]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l processes -d 'The most processes and threads of a job [default: no limit]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l open-files -d 'The most open files of each process of a job [default: as the worker]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l cpus -d 'Processors that a job may keep busy, as 1.5 [default: all]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l oom-score-adj -d 'How readily the kernel ends a job where memory is short, from -1000 to 1000 [default: 0]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l keep-finished -d 'How many finished jobs to keep [default: 10000]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l handshake -d 'How long a TLS handshake may take [default: 5s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l headers -d 'How long the headers of a request may take [default: 10s]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l header-bytes -d 'How many bytes of headers a request may have [default: 16384]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l streams -d 'How many requests an HTTP/2 connection may have at once [default: 64; a worker\'s: twice its followers]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l connections -d 'How many connections an address may have that asked for something [default: 1024]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l silent -d 'How many connections an address may have that did not [default: 128]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l total-connections -d 'How many connections a server may have in all [default: 8192]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l args -d 'How many arguments a job may have [default: 1000]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l arg-bytes -d 'How many bytes a job\'s arguments and environment may have [default: 262144]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l followers -d 'How many followers the jobs of a worker may have at once [default: 1024]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l log-level -d 'As `debug`, or `warn,jobctl=trace` [default: info]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l log-format -d 'text or json [default: text]' -r -f -a "text\t''
json\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l insecure -d 'Speak plain text, on loopback'
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -l drain-on-stop -d 'When asked to end, end the jobs first'
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -f -a "kill-all" -d 'End the jobs of a worker that is not running'
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and not __fish_seen_subcommand_from kill-all help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and __fish_seen_subcommand_from kill-all" -l name -d 'What the worker is called [default: the name of this machine]' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and __fish_seen_subcommand_from kill-all" -l data-dir -d 'Its data folder [default: as for `jobctl worker`]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and __fish_seen_subcommand_from kill-all" -l grace -d 'From TERM to KILL' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and __fish_seen_subcommand_from kill-all" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and __fish_seen_subcommand_from kill-all" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and __fish_seen_subcommand_from help" -f -a "kill-all" -d 'End the jobs of a worker that is not running'
complete -c jobctl -n "__fish_jobctl_using_subcommand worker; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand dev" -l data-dir -d 'Where to keep everything [default: a folder removed at the end]' -r -F
complete -c jobctl -n "__fish_jobctl_using_subcommand dev" -l log-level -d 'What the roles log on stderr' -r
complete -c jobctl -n "__fish_jobctl_using_subcommand dev" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand dev" -l raw -d 'Let control characters of the job act on a terminal'
complete -c jobctl -n "__fish_jobctl_using_subcommand dev" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand completions" -l color -d 'When to use colour: auto, always or never' -r -f -a "auto\t''
always\t''
never\t''"
complete -c jobctl -n "__fish_jobctl_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "start" -d 'Start a program or script on a worker; prints the id of the job'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "stop" -d 'Stop jobs and groups, each with everything it started'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "query" -d 'Show jobs, and groups of jobs, in full'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "jobs" -d 'List jobs, the newest first'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "logs" -d 'Show what a job has written, or the jobs of a group'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "wait" -d 'Wait for the end of jobs and groups, and end with their exit code'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "workers" -d 'List the workers and how they stand; label, drain and remove them'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "token" -d 'Make, list and revoke the tokens with which others are let in'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "cert" -d 'See who has a certificate, and revoke what somebody has'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "ca" -d 'See and change the authority that signs for everybody'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "audit" -d 'Show who did what, and who was refused'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "version" -d 'Show the versions of this program and of the scheduler'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "context" -d 'Choose and keep how clusters are reached'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "login" -d 'Join a cluster as a user, with a token an admin made'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "scheduler" -d 'Run the scheduler: the HTTP API, and the list of workers and jobs'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "worker" -d 'Run a worker: starts jobs on this machine, and keeps their output'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "dev" -d 'Run a whole cluster in one process, for trying out'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "completions" -d 'Print the completion script of a shell'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and not __fish_seen_subcommand_from start stop query jobs logs wait workers token cert ca audit version context login scheduler worker dev completions help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from workers" -f -a "show" -d 'Show all that is known of workers'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from workers" -f -a "label" -d 'Set labels of a worker, or take them off'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from workers" -f -a "drain" -d 'Give workers no more jobs; those they have go on'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from workers" -f -a "resume" -d 'Let workers that were drained take jobs again'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from workers" -f -a "remove" -d 'Forget workers that are gone and will not come back'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from token" -f -a "create" -d 'Make a token, and print what is to be passed on'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from token" -f -a "list" -d 'List the tokens, the newest first'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from token" -f -a "revoke" -d 'Revoke tokens: from now on they are not taken'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from cert" -f -a "list" -d 'List who has a certificate, the newest first'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from cert" -f -a "revoke" -d 'Revoke what somebody has: from now on they are refused'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from ca" -f -a "show" -d 'Show the authorities that are trusted here'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from ca" -f -a "rotate" -d 'Have another authority sign from now on, and print its fingerprint'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from context" -f -a "list" -d 'List the contexts'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from context" -f -a "use" -d 'Make a context the current one'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from context" -f -a "show" -d 'Show one context in full'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from context" -f -a "add" -d 'Add a context'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from context" -f -a "remove" -d 'Remove a context, with those of its files that lie in the client\'s folder'
complete -c jobctl -n "__fish_jobctl_using_subcommand help; and __fish_seen_subcommand_from worker" -f -a "kill-all" -d 'End the jobs of a worker that is not running'
