# Airflow's official image with what the backups need besides: PostgreSQL's client tools, git, and requirements.txt.
FROM apache/airflow:3.3.2

# Client tools of this major version dump servers of it and of every older one; raise it with the server.
ARG POSTGRES_MAJOR=18

USER root
# PostgreSQL's own archive: the image's Debian has only the major version of its release.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git postgresql-common \
    && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y \
    && apt-get install --yes --no-install-recommends "postgresql-client-${POSTGRES_MAJOR}" \
    && rm -rf /var/lib/apt/lists/*

USER airflow
COPY requirements.txt /requirements.txt
RUN pip install --no-cache-dir --requirement /requirements.txt
