"""Everything that is declared: the author's ``plugin.yaml`` and the operator's manifests (DESIGN §8)."""

from analytics_core.manifest.cohorts import CohortCondition, CohortManifest
from analytics_core.manifest.deployment import KINDS, Deployment, read_deployment, read_file
from analytics_core.manifest.filling import Filled
from analytics_core.manifest.fitting import fit
from analytics_core.manifest.json_schema import fit_schema, schema_problem
from analytics_core.manifest.models import (
    DEFAULT_MEMORY_MB,
    TENANT,
    AnalysisManifest,
    ChannelManifest,
    HostManifest,
    Limits,
    Manifest,
    MetricManifest,
    PluginManifest,
    PluginSettingsManifest,
    ProvidedMetric,
    Provides,
    Reload,
    Requires,
    TenantManifest,
)
from analytics_core.manifest.package import checked_settings, read_plugin
from analytics_core.manifest.schemas import schema_of, schemas
from analytics_core.manifest.secrets import MASK, masked
from analytics_core.manifest.source import Document, Source, read_documents

__all__ = [
    "DEFAULT_MEMORY_MB",
    "KINDS",
    "MASK",
    "TENANT",
    "AnalysisManifest",
    "ChannelManifest",
    "CohortCondition",
    "CohortManifest",
    "Deployment",
    "Document",
    "Filled",
    "HostManifest",
    "Limits",
    "Manifest",
    "MetricManifest",
    "PluginManifest",
    "PluginSettingsManifest",
    "ProvidedMetric",
    "Provides",
    "Reload",
    "Requires",
    "Source",
    "TenantManifest",
    "checked_settings",
    "fit",
    "fit_schema",
    "masked",
    "read_deployment",
    "read_documents",
    "read_file",
    "read_plugin",
    "schema_of",
    "schema_problem",
    "schemas",
]
