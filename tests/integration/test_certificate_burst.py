"""A year ends: many complete at once, and several workers side by side issue, draw and sign their certificates."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.test_certificate_documents import a_version, every_minute
from tests.support.service import Service

#: How many certificates; 10,000 by hand.
CERTIFICATES = int(os.environ.get("CERTIFICATES", "200"))
WORKERS = 2

WORKER = """
import json, sys
from functions.certificate_worker.app import handler
from tests.support.service import context, event, record
version, first, step, end = json.loads(sys.argv[1])
from uuid import UUID
for at in range(first, end, step):
    # A queue hands over ten messages at most, and from the bus each holds one event.
    about = [{"user_id": str(UUID(int=n + 1)), "course_version_id": version} for n in range(at, min(at + 10, end))]
    handler({"Records": [record(json.dumps(event("enrollment.completed", one))) for one in about]}, context("worker"))
"""


@pytest.mark.timeout(300 + CERTIFICATES // 5)
def test_each_gets_one_with_all_that_belongs_to_it(service: Service):
    version = a_version(service)["course_version_id"]
    service.rows(
        """
        INSERT INTO learners (user_id, name, updated_at)
        SELECT lpad(to_hex(n), 32, '0')::uuid, 'Learner ' || n, now() FROM generate_series(1, %s) n
        """,
        CERTIFICATES,
    )
    service.rows(
        """
        INSERT INTO enrollments (user_id, course_version_id, status, completed_at, commanded_at, command)
        SELECT lpad(to_hex(n), 32, '0')::uuid, %s, 'completed', now(), now(), 'requested' FROM generate_series(1, %s) n
        """,
        version,
        CERTIFICATES,
    )
    started = time.monotonic()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps([version, 10 * n, 10 * WORKERS, CERTIFICATES])],
            env=os.environ | {"DATABASE_URL": service.database_url},
            cwd=Path(__file__).parent.parent.parent,
            stdout=subprocess.DEVNULL,
        )
        for n in range(WORKERS)
    ]
    assert [worker.wait() for worker in workers] == [0] * WORKERS
    seconds = time.monotonic() - started
    print(f"{CERTIFICATES} certificates in {seconds:.1f} s, {CERTIFICATES / seconds:.1f}/s")
    every_minute(service)
    (row,) = service.rows(
        """
        SELECT count(*) AS all, count(DISTINCT certificate_uid) AS uids, count(DISTINCT status_entry) AS entries,
            count(DISTINCT credential::jsonb -> 'credentialStatus' ->> 'id') AS statuses, count(DISTINCT pdf_url) AS documents,
            count(DISTINCT credential) AS credentials, count(DISTINCT credential_jwt) AS tokens,
            count(*) FILTER (WHERE due_at IS NULL) AS finished
        FROM certificates
        """
    )
    assert set(row.values()) == {CERTIFICATES}
    told = service.rows(
        "SELECT count(*), count(DISTINCT data ->> 'certificate_uid') FROM outbox WHERE type = 'certificate.issued'"
    )
    assert set(told[0].values()) == {CERTIFICATES}
