"""Bounds, and the settings (settings.py).

Every loop, queue, batch, retry, wait and page of the house has its bound here, unit last. They are
constants, because nobody should have to tune them.
"""

from __future__ import annotations

from mcp_bus.config.settings import PREFIX, Settings, load

__all__ = ["PREFIX", "Settings", "load"]

# --- the wire ---------------------------------------------------------------------------------
MESSAGE_BYTES_MAX = 256 * 1024
MESSAGE_DEPTH_MAX = 32
HEADERS_BYTES_MAX = 4 * 1024  # beside a message: its id, its trace, a fence

# --- the log ----------------------------------------------------------------------------------
PUBLISH_RETRY_S = 15.0  # a leader election takes 5.4 to 7.6 s
PUBLISH_ATTEMPT_S = 2.0
PUBLISH_SETTLE_S = 15.0  # of an unknown outcome; half of the shortest duplicate_window_s
PUBLISH_UNSETTLED_MAX = 10_000  # that are remembered, the last ones
SETTLE_PAGES_MAX = 20  # of the log, looked through for one message
PUBLISH_BACKOFF_S = 0.05
PUBLISH_BACKOFF_S_MAX = 1.0
PUBLISH_WAITING_MAX = 10_000  # who wants to publish more waits for room
PUBLISH_SINGLES_MAX = 256  # under way, each by itself
PUBLISH_BATCH_MIN = 8
PUBLISH_BATCH_BYTES_MAX = 8 * 1024 * 1024
PUBLISH_BATCH_S = 0.004  # that one takes, before one was measured
PUBLISH_ACK_S = 0.0003  # and one message
FENCED_SINGLY_MAX = 15  # outputs of a decider; a batch costs as much as so many fsyncs
PUBLISH_SMOOTHED_OVER = 16  # measurements
PULL_BATCH = 500  # messages asked for by one pull; two overlap
PULL_EXPIRES_S = 30.0
DECIDER_PACE_S = 0.02  # a decider that has caught up reads what came in so long, unless asked
STORE_PACE_S = 0.01  # and so recorder and projector; it grows with what a batch took, times
STORE_PACE_FACTOR = 10
STORE_PACE_S_MAX = 0.03
FOLLOWER_IDLE_S = 30.0  # the server forgets a follower this long after its last pull
UNHEARD_AGAIN_S = 0.05  # what was just made is asked again, where a server does not know it yet
CONSUMERS_MAX = 20_000  # queues of agents, and followers; the server's own bound is 1,000
AGENTS_MAX = 10_000  # that are registered: each has a queue for ever, and followers need some too
LOG_REQUEST_S = 5.0
LOG_ASK_AGAIN_S = 0.5  # a question that nobody answered, where that changes nothing
LOG_CONNECT_S = 5.0
PING_EVERY_S = 5  # with two outstanding: a frozen server is noticed in 15 s
PINGS_OUTSTANDING_MAX = 2
RECONNECT_SERVICE_WAIT_S = 0.05
RECONNECT_WAIT_S = 0.25
RECONNECT_WAIT_S_MAX = 1.0
DENIALS_MAX = 3  # each within DENIAL_QUICK_S of the one before: then the answer is no
DENIAL_QUICK_S = 1.5  # the server waits 3 s for a bus that does not say who may connect
KICK_AGAIN_S = 2.0
SERVERS_ANSWER_S = 0.5  # for all servers of a cluster to answer
SYNC_INTERVAL_S_MAX = 120.0  # between two flushes of a log whose durability is `interval`

# --- deciders ---------------------------------------------------------------------------------
ATOMIC_BATCH_MAX = 500  # the server takes 1,000
DECIDER_INFLIGHT_MAX = 1024
OUTPUT_UNSEEN_S = 1.5
CLAIM_AGAIN_S = 0.5
DECIDER_TICK_S = 0.02
DECIDER_IDLE_S = 1.0
TAKEOVER_OWN_S = 0.02  # after a restart: nobody else is there to wait for
TAKEOVER_S_MIN = 0.7
TAKEOVER_S_MAX = 1.2
PAYLOAD_TRIES_MAX = 5  # to read a message that a decision needs: a copy of the log may be behind
PAYLOAD_AGAIN_S = 0.05  # between two, each time later
PAYLOAD_READS_MAX = 64  # of messages that are not in memory, at a time
PAYLOAD_CACHE_MESSAGES_MAX = 4096  # parsed, a small one takes 4 KB
PAYLOAD_CACHE_BYTES_MAX = 64 * 1024 * 1024
TOMBSTONE_TTL_MS = 24 * 3600 * 1000
IDEMPOTENCY_TTL_MS = 24 * 3600 * 1000  # that a start is known by its key, of log time
STEPS_MAX = 256
CHILD_DEPTH_MAX = 8  # of executions that are started by steps of others
FOR_EACH_MAX = 10_000  # items of one step
FOR_EACH_REFERENCES_MAX = 1_000_000  # in inputs and outputs of all of them; 1.6 s
PARALLEL = 100  # items that are under way at a time, unless the author says otherwise
PARALLEL_MAX = 1_000
ENVELOPE_BYTES_MAX = 4096  # around a step's inputs
PAYLOAD_ENVELOPE_BYTES_MAX = 3072  # around a fact's payload
REFERENCES_FREE = 4  # of one value; what further ones name counts
RESOLVED_BYTES_MAX = 1024 * 1024  # that those name together
ERROR_CHARS_MAX = 4096  # of an error's sentence, as a decider tells it
ERROR_DETAILS_BYTES_MAX = 32 * 1024
ERROR_LEVELS_MAX = 16  # that its details are nested
TIMERS_EVERY = 1_021  # positions; a prime, that no load is in step with
TIMERS_DUE_MAX = 1_000  # that are observed at a time; the others when those are read
TIMER_RETRY_MS = 5_000  # a time-out unseen in the log is observed again
STEP_TIMEOUT_MS = 60_000
LOAD_MS_MAX = 600_000  # that an unanswered request counts as load of its agent
LOAD_REQUESTS_MAX = 200_000  # that are counted at a time
PROMISE_MS = 1_000  # that a choice counts before its request is read
STEP_TIMEOUT_MS_MAX = 24 * 3600 * 1000
RETRY_ATTEMPTS_MAX = 100
RETRY_DELAY_MS = 1_000
RETRY_DELAY_MS_MAX = 3600 * 1000
WAIT_MS_MAX = 366 * 24 * 3600 * 1000  # of one step
SIGNALS_MAX = 100  # that an execution keeps until a step waits for them
CEL_CHARS_MAX = 512
CEL_ITEMS_MAX = 5_000  # that all or exists goes through; 15 ms
SCHEMA_PARTS_MAX = 2_000  # of an author's JSON Schema, each as often as references come to it
SCHEMA_LEVELS_MAX = 200  # that they are nested, by references too
SCHEMAS_KEPT_MAX = 1024  # that are known to be sound
SCHEMA_WORK_MAX = 5_000_000  # parts times values that are checked by them; 1.5 s at the worst
FINDINGS_MAX = 100  # of a value that does not fit one, or of warnings
FINDINGS_WORK_MAX = 50_000  # parts of a schema times values; of more only the first is told; 0.5 s
FINDING_CHARS_MAX = 300  # of one, as it is told
OPERAND_BYTES_MAX = 1024  # of a condition's operand, as it is recorded
OPERAND_LEVELS_MAX = 16
OPERANDS_BYTES_MAX = 16 * 1024  # of all of one condition

# --- snapshots of the deciders ----------------------------------------------------------------
SNAPSHOT_MESSAGES = 50_000  # that a restart folds, read at 50,000 to 100,000/s; then the next one
SNAPSHOT_EVERY_S = 30.0  # as long as anything happens at all
SNAPSHOT_ASKED_S = 0.5  # after the last one, when the log is to be trimmed
SNAPSHOT_PACE_FACTOR = 20  # times what the last one took is the least between two
SNAPSHOT_PIECE_BYTES = 512 * 1024  # the server takes 1 MB
SNAPSHOT_BYTES_MAX = 64 * 1024 * 1024  # of one, compressed to a tenth; a larger one is refused
SNAPSHOT_HEADS_MAX = 32  # that are looked at; two are kept
SNAPSHOTS_KEPT = 2
SNAPSHOTS_BYTES_MAX = 1024**3  # room of their own: two of each decider, and those being written

# --- recorder, projector ----------------------------------------------------------------------
TRIM_EVERY_S = 1.0  # the log is looked at this often
LOG_TRIMMED_TO = 0.75  # of its high water
RECORD_BATCH_MAX = 2000
RECORD_BATCH_BYTES_MAX = 16 * 1024 * 1024
RECORD_IDLE_S = 0.5  # a silent recorder shows the database that it lives this often
RECORDER_SILENT_S = 1.5  # one that let its session wait for so long is deposed by a standby
PROJECT_BATCH_MAX = 2000
PROJECT_BATCH_BYTES_MAX = 16 * 1024 * 1024
LOOK_UP_MAX = 100  # messages fetched at once by id: each may be of the largest size
PROJECT_IDLE_S = 1.0  # a wake-up lost by the database is made good after this
STORE_RETRY_S = 0.25
STORE_RETRY_S_MAX = 2.0
STORE_CONNECT_S = 5.0
STORE_POOL_MAX = 8
STORE_STATEMENT_S = 10.0  # a wire that fell silent is noticed in 10 to 30 s
STORE_IDLE_IN_TRANSACTION_S = 10.0
STORE_KEEPALIVE_S = 5.0
MIGRATE_S_MAX = 120.0
STANDBY_RETRY_S = 0.5
QUARANTINE_SHOWN_MAX = 1000  # characters of a reason
COMPARE_S_MAX = 600.0  # to count and hash one read table

# --- repair -----------------------------------------------------------------------------------
REPAIR_RETRY_S = 2.0  # a log that went back is looked at again
REPAIR_ITSELF_S = 180.0  # of recorded history that a crash can take from the log: it flushes in 120
REPAIR_BEYOND = 1_000_000  # positions that are left out, more than anybody may have seen
REPAIR_FORGET_S = 0.25  # for the log to forget the ids that it knew
REPAIR_RECORDED_S = 10.0  # for the recorder to record what the log still has
REPAIR_TOLD_S = 0.5  # for the services to say how far they are

# --- backup -----------------------------------------------------------------------------------
COPY_CHUNK_BYTES = 128 * 1024
COPY_SILENT_S = 30.0  # of a server that copies a stream
COPY_TOLD_S = 1.0  # between two words about how far it is

# --- agents -----------------------------------------------------------------------------------
ACK_WAIT_S = 10.0
AGENT_PULL_S = 5.0  # a pull for requests; shorter than a follower's, its queue may not exist yet
AGENT_PULL_GRACE_S = 0.5
IN_PROGRESS_EVERY_S = 3.0
DELIVER_MAX = 5
ACK_PENDING_MAX = 10_000
LOOK_AGAIN_S = 0.2  # a bus that is busy is asked again, each time later
LOOK_TRIES_MAX = 5
LOOKS_MAX = 8  # of one process at a time; QUERIES_EACH_MAX are answered to all of its id
LOOK_AFTER_S = 1.0  # a request that waited so long may be given up: it is looked up first
QUEUE_OPEN_AGAIN_S = 5.0  # a queue that the log did not open
QUEUE_LOOK_S = 1.0  # for requests that are stuck in an agent's queue
QUEUE_LOOK_WAIT_S = 0.1  # that the registry waits for one look, before it goes on beside it
QUEUE_LOOK_AFTER_S = 30.0  # of a connection, or queue_max: agents come back first
QUEUES_LOOKED_MAX = 100  # at a time
STUCK_SAID_MAX = 500  # requests at a time
OUTSTANDING_MAX = 200_000  # requests that are looked after at a time
OUTSTANDING_MS_MAX = 2 * 24 * 3600 * 1000  # queue_max and an action at their longest
DROPPED_KEPT_MAX = 100_000  # requests of which the server said that it hands them out no more
DROPPED_KEPT_S = 7 * 24 * 3600.0
HANDLERS_MAX = 64  # actions that one agent process runs at once
CONCURRENCY_MAX = 1024  # that an agent may name for its processes
HEARTBEAT_EVERY_S = 5.0
HEALTH_SILENT_S = 15.0  # without a heartbeat a process is silent; as long is listened before that
HEALTH_LOOK_S = 1.0
HEALTH_FORGET_S = 600.0  # a silent process is shown that long
HEALTH_PROCESSES_MAX = 64  # of each agent, as heartbeats are kept
DRAIN_S_MAX = 8.0
REQUEST_S = 30.0
TOKEN_REQUEST_S = 5.0
TOKEN_RENEW_RETRY_S = 10.0
REGISTER_RETRY_S = 0.5  # a command that nobody answered yet is asked again, each time later
REGISTER_RETRY_S_MAX = 15.0
ACTION_S_MAX = 24 * 3600.0  # as long as the longest step may wait
ANSWERED_KEPT_MAX = 4096  # requests that an agent knows to have answered
GIVEN_UP_KEPT_MAX = 4096  # and that it heard to be given up
PARTIALS_MAX = 10_000  # parts of one answer
PARTIALS_BYTES_MAX = 2 * MESSAGE_BYTES_MAX  # that a client takes live; the answer has all of them
ANSWERS_HEARD_MAX = 16  # to the steps of an execution that a client waits for; the last counts
EXECUTION_S = 300.0  # that a client waits for the end of an execution
CANCELS_KEPT_MAX = 4096  # that an agent knows, also of requests that it has not taken yet
CANCEL_TOLD_S_MAX = 2.0  # that a closing client gives its last Cancels
SUBSCRIPTION_MESSAGES_MAX = 10_000  # that a listener may be behind
SUBSCRIPTIONS_MAX = 1000  # of one connection; the server holds to it (nats.conf)
MCP_SERVER_START_S = 30.0
MCP_SERVER_AGAIN_S = 0.1  # a server that ended is started again, each time later
MCP_SERVER_AGAIN_S_MAX = 5.0
MCP_SERVER_FAILURES_MAX = 10  # runs in a row, each shorter than the next; 20 s of waiting
MCP_SERVER_WELL_S = 60.0  # a run that is this long is no failure
MCP_STDERR_LINE_BYTES_MAX = 4096  # a longer line is logged in pieces
MCP_TOOL_PAGES_MAX = 100
MCP_LIST_EVERY_S = 0.5  # tools that change more often are listed this often
MCP_PROGRESS_EVERY_S = 1.0  # of one call: each is an event that the log keeps
MCP_PROGRESS_NOTE_MAX = 1000  # characters
MCP_LISTEN_AGAIN_S = 5.0  # a server that stopped to tell of changes is asked to again
MCP_HTTP_S = 30.0  # to reach a server, to send, and for a good-bye
RECOVER_AFTER_S = 1.0  # a silent question looks into the log after this, and each time later
RECOVER_AFTER_S_MAX = 4.0
RECOVER_PAGES_MAX = 20  # that one look reads
READ_PAGE_MAX = 500  # messages of the log that one question to the bus reads
READ_BYTES_MAX = 200_000  # of all but the last; as text in an answer each may take twice as much
READ_ANSWERS_BYTES_MAX = 16 * 1024 * 1024  # that one look for the answer to a request passes
SUBSCRIPTION_RECOVER_S = 60.0  # that a listener tries to read what it missed

# --- gateway ----------------------------------------------------------------------------------
BODY_BYTES_MAX = 512 * 1024
COMMAND_S = 10.0
READ_MODEL_WAIT_S = 2.0
EXECUTE_WAIT_S_MAX = 300.0
PAGE_MAX = 200
AGENT_FACTS_MAX = 200_000  # of the registry's facts that one look at the past reads
POSITION_MAX = 2**53
TIME_MS_MAX = 2**53
PAGE_BYTES_MAX = 8 * 1024 * 1024
QUERIES_MAX = 64  # questions over the log that one gateway answers at a time
QUERIES_EACH_MAX = 16  # of one agent
ANSWER_BYTES_MAX = 1_000_000  # of an answer to one; the server takes 1 MB
ROWS_MAX = 10_000  # of an answer that is not paged yet
EXECUTIONS_SHOWN_MAX = 20
DRAIN_GATEWAY_S = 5.0
CATCH_UP_S = 2.0  # that a gateway reads who is revoked before it answers /health
TOKEN_TTL_S = 12 * 3600
TOKEN_TTL_S_MAX = 30 * 24 * 3600  # of a token that a route issues
TOKEN_BYTES_MAX = 4096
RSA_BITS_MIN = 2048  # RFC 7518, section 3.3
CLIENT_S = 30.0  # that the CLI waits: longer than a gateway takes to give up
WATCH_LOOK_S = 0.2  # the CLI looks so often at an execution that it waits for
TAIL_MESSAGES_MAX = 10_000  # that `mcp-bus tail` may be behind
QUERY_S = 10.0
ANALYTICS_PERIOD_MS = 24 * 3600 * 1000  # when nobody names one
EXECUTION_LOOK_S = 5.0  # a waiting execute looks again after this: an event may have been missed
SERVICE_SILENT_S = 5.0  # a service that says nothing for this long is silent
STATUS_DETAIL_MAX = 500  # characters that a service says of its trouble
SERVICE_PROCESSES_MAX = 64  # of one service, as /health knows them
READ_MODEL_CHECK_S = 5.0  # a wake-up lost by the database is made good after this

# --- supervision ------------------------------------------------------------------------------
START_S_MAX = 30.0
START_RETRY_S = 0.5
STOP_S_MAX = 8.0
RESTARTS_MAX = 5
RESTARTS_WINDOW_S = 60.0
RESTART_BACKOFF_S = 0.1
RESTART_BACKOFF_S_MAX = 5.0
LAST_WORDS_LINES = 20
LAST_WORDS_S = 0.5  # that a dead child's children may hold its stderr open
LAST_WORDS_BYTES_MAX = 16 * 1024
CHILD_LOG_BYTES_MAX = 16 * 1024 * 1024  # then it moves to <name>.log.1
CHILD_LOG_CHECK_S = 10.0
STOP_STEP_S = 1.0  # a service's head start before the next one is told to stop
STOP_SERVICES_S_MAX = 6.0  # of STOP_S_MAX; the rest is for the engines
HEALTH_POLL_S = 0.05
ENGINE_POLL_S = 0.01
LOCK_POLL_S = 0.05
FREE_PORT_MIN = 10240
FREE_PORT_MAX = 32767  # above it the system hands ports to outgoing connections
FREE_PORT_TRIES_MAX = 100
LOG_LOOK_S = 1.0  # whether the embedded log still writes
LOG_ROOM_BYTES = 32 * 1024**2  # that are free before a log that found no room is started again
# of disk that the embedded log may take beside log_bytes_max: snapshots, what a log holds that was
# larger before, and what the server has not given back yet
LOG_STORE_BYTES_BESIDE = 8 * 1024**3

# --- tests of agents and workflows (agents_sdk.testing) ---------------------------------------
TEST_WAIT_S = 10.0  # for what a test says will happen
TEST_TOKEN_S = 24 * 3600
SHOWN_BYTES_MAX = 200  # of a payload that a failing test shows
EVENTS_SHOWN_MAX = 50

# --- the demo ---------------------------------------------------------------------------------
GIT_S_MAX = 10.0
DEMO_COMMITS_MAX = 30  # of the newest; their log must fit into one message
DEMO_REGISTER_S = 30.0
DEMO_EXECUTE_S = 60.0
DEMO_HEARD_S = 2.0  # for the last live message, which is only shown
