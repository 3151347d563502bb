"""Open edX's own completion library on PostgreSQL, in the smallest Django that it runs in.

Runs in the environment of this folder: .tools/peers/bin/python -m tests.bench.programs.edx_completion <URL of its database>.
"""

import itertools
import sys
from time import perf_counter
from urllib.parse import urlsplit

import django
from django.conf import settings

from tests.bench.programs import child

url = urlsplit(sys.argv[1])
settings.configure(
    SECRET_KEY="none",  # noqa: S106 - It keeps nothing secret.
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "eventtracking.django", "waffle", "completion"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path[1:],
            "USER": url.username,
            "HOST": url.hostname,
            "PORT": url.port,
            "CONN_MAX_AGE": None,
        }
    },
    # Switches are looked up in it.
    CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    # Without a back end it tells nobody, which is the cheapest.
    EVENT_TRACKING_ENABLED=True,
    USE_TZ=True,
)
django.setup()

from completion.models import BlockCompletion  # noqa: E402 - Django has to be set up first.
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from opaque_keys.edx.keys import CourseKey, UsageKey  # noqa: E402
from waffle.models import Switch  # noqa: E402


class Batches:
    """Submits batches for one learner; the keys of the blocks are made before."""

    def __init__(self) -> None:
        self._user = User.objects.create_user("learner")
        self._numbers = itertools.count(1)
        self._known = 0
        self._blocks = self._course(0)

    def _course(self, number: int) -> list[UsageKey]:
        course = CourseKey.from_string(f"course-v1:Open+Course+{number}")
        return [course.make_usage_key("video", f"{n:032x}") for n in range(1000)]

    def new(self, rows: int) -> list[float]:
        return self._submit(self._course(next(self._numbers))[:rows])

    def existing(self, rows: int) -> list[float]:
        """Rows of before, each with another value."""
        if self._known < rows:
            self._submit(self._blocks[:rows])
            self._known = rows
        return self._submit(self._blocks[:rows])

    def _submit(self, blocks: list[UsageKey]) -> list[float]:
        completion = next(self._numbers) % 1000 / 1000
        values = [(block, completion) for block in blocks]
        began = perf_counter()
        submitted = BlockCompletion.objects.submit_batch_completion(self._user, values)
        seconds = perf_counter() - began
        assert len(submitted) == len(blocks)
        return [seconds]


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    # Without it nothing is tracked.
    Switch.objects.create(name="completion.enable_completion_tracking", active=True)
    batches = Batches()
    child.answer({"new": batches.new, "existing": batches.existing})
