"""One message to one simulated client, the same on every engine of ours."""

from __future__ import annotations

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from fl_darex.flower.private import ErrorCode, with_content
from fl_darex.flower.records import copied
from fl_darex.simulation.memory import ran_out, spoilt


def answer(
    app: ClientAppCallable, message: Message, context: Context
) -> tuple[Message, RecordDict]:
    """Run a client and return copies of its reply and of the state that it leaves.

    A client that raises is an error reply and leaves the state as it was before the message,
    whatever it wrote to it by then. So does one that returns no message, or a reply to another
    message, as some mods' own errors are: nobody would wait for it.

    Args:
        app: The ClientApp.
        message: The message, with records that belong to this client alone.
        context: The client's context; the app is given a copy of its state.

    Raises:
        Exception: The client's own, if it ran out of memory, of which another place may have
            enough, or may have cost this process its GPU.
    """
    before, context.state = context.state, copied(context.state)
    try:
        reply = app(message, context)
        if not isinstance(reply, Message):
            return failure(message, _no_message(message, reply)), before
        if reply.metadata.reply_to_message_id != message.metadata.message_id:
            reply = _astray(message, reply)
        return detached(reply), copied(context.state)
    except Exception as error:
        if ran_out(error) or spoilt(error):
            raise
        return failure(message, f"{type(error).__name__}: {error}"), before


def detached(message: Message) -> Message:
    """Return a message as it arrives over a network: it shares no records with the one given."""
    return with_content(message, copied(message.content)) if message.has_content() else message


def failure(
    message: Message, reason: str | None, code: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
) -> Message:
    """Return an error in place of a client's reply."""
    return Message(Error(code=code, reason=reason), reply_to=message)


def _no_message(message: Message, reply: object) -> str:
    kind = message.metadata.message_type
    return (
        f"the ClientApp's function for {kind!r} messages returned {type(reply).__name__}, not a "
        "Message; end it with: return Message(content, reply_to=message)"
    )


def _astray(message: Message, reply: Message) -> Message:
    raised = reply.has_error()
    return failure(message, reply.error.reason if raised else "the app answered another message")
