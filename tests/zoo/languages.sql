-- where: EXISTS (SELECT FROM pg_available_extensions WHERE name = 'plperl')
-- A procedural language beyond the server's own.
CREATE EXTENSION plperl;
CREATE SCHEMA languages;
CREATE FUNCTION languages.reversed(text) RETURNS text LANGUAGE plperl IMMUTABLE AS $perl$ my $x = $_[0]; return scalar reverse $x; # '$$' $perl$;
CREATE TABLE languages.uses (t text CHECK (languages.reversed(t) <> 'x'));
INSERT INTO languages.uses VALUES ('abc');
